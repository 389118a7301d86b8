/* SPDX-License-Identifier: MIT */
/*
 * Streams: regular accesses, and which pages to read ahead for them.
 *
 * Three of the last faults at equal distances make a stream, whatever faults were between them: of other streams, of
 * other virtual CPUs, or at random. (Leap's majority vote over the last steps, ATC'20, needs most faults to be of one
 * stream: docs/paging-policy.md compares the two.) A stream's window starts small, doubles with each window that is
 * used, up to --readahead, and halves when pages of it leave unused.
 *
 * Pages that are read ahead become inactive (in the memfd, mapped nowhere), so a useless page is among the first to
 * leave and costs no zap. The first touch of a window is a MINOR fault, which maps the pages of the window that have
 * come and asks for the next window.
 *
 * At the end of a stream its reader is expected to turn as it did last time (successors.h): the stream that followed
 * then is begun for the reader, and read ahead as if it were the same stream.
 *
 * No function here reads from a donor: stream_wants() says which pages are wanted; the caller reads them, and says by
 * stream_covered() how far that went. Fault thread only.
 */
#ifndef GHOSTBOX_PAGER_STREAM_H
#define GHOSTBOX_PAGER_STREAM_H

#include "fault/successors.h"

#include <stdbool.h>
#include <stdint.h>

#define STREAMS       32u
#define RECENT_FAULTS 32u

/* A stream: accesses at equal distances. Page numbers are pool pages. */
struct stream {
    uint32_t first;   /* the page at which it began */
    uint32_t seen;    /* the last page at which a fault showed the reader */
    uint32_t last;    /* the last page mapped for the reader */
    int32_t stride;   /* pages from one access to the next; never 0 while in use */
    int64_t frontier; /* the first page that was not asked for yet; it may lie outside the pool */
    uint32_t window;  /* steps to ask for next */
    uint32_t n_used;  /* how often a page that was read ahead was used */
    bool begun;       /* the reader was seen in it; false: the reader is expected */
    uint64_t used;    /* tick of the last hit, for replacement; 0: the entry is free */
};

struct streams {
    struct stream list[STREAMS];
    struct stream *reading; /* the stream in which a reader was seen last; NULL: it was replaced */
    struct successors successors;
    uint32_t n_pages;         /* of the pool */
    uint32_t readahead_pages; /* largest window; 0: no readahead */
    uint64_t tick;
    uint32_t recent[RECENT_FAULTS];           /* the last faults on absent pages */
    uint64_t recent_random_ns[RECENT_FAULTS]; /* when the faults of no stream among them were; 0 for the others */
    uint32_t n_faults;
    uint64_t random_ns; /* when the last page of no stream was fetched */
    uint64_t n_wasted_seen;
};

/* The state of the cache, as far as streams need it. */
struct stream_cache {
    int64_t cache_pages;
    uint64_t n_wasted;    /* pages that were read ahead and left unused */
    uint32_t last_wasted; /* the last of these pages */
};

/* Pages to read ahead: n_pages from this one on, up or down. */
struct stream_wish {
    uint32_t page, n_pages;
    bool backwards;
};

/* The state of a walk that reads ahead for a stream. */
struct stream_walk {
    struct stream *stream, *at; /* the reader's stream; the stream to which the turns have led */
    int64_t goal, ahead;        /* how many pages ahead of the reader to come, and how many are asked for */
    uint32_t n_followed;        /* turns so far */
};

/* Returns 0 or -ENOMEM. */
int streams_create(struct streams *streams, uint32_t n_pages, uint32_t readahead_pages);
void streams_destroy(struct streams *streams);

/*
 * Notes a fault on a page that was not read ahead, and finds or begins its stream (NULL: it belongs to none). Returns
 * how many pages may be brought in beside this one.
 */
uint32_t stream_fault(struct streams *streams, const struct stream_cache *cache, uint32_t page,
                      struct stream **stream);
/* Notes that the page of the last stream_fault() is fetched from a donor and belongs to no stream. */
void stream_note_random(struct streams *streams, uint64_t now_ns);
/* Whether a page of no stream was fetched in the last RANDOM_LATELY_NS. */
bool stream_random_access(const struct streams *streams);
/* Notes the use of a page that was read ahead. Returns its stream, or NULL. */
struct stream *stream_hit(struct streams *streams, uint32_t page);
/* Begins to read ahead for a stream whose reader is at this page now. */
struct stream_walk stream_advance(struct streams *streams, const struct stream_cache *cache, struct stream *stream,
                                  uint32_t page);
/* Sets *wish to the pages to read next. Returns false if nothing is left to read. */
bool stream_wants(struct streams *streams, struct stream_walk *walk, struct stream_wish *wish);
/* Says that the first n_pages (at least one) of the last wish are being read, or are here. */
void stream_covered(struct stream_walk *walk, uint32_t n_pages);

#endif
