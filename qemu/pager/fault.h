/* SPDX-License-Identifier: MIT */
/* Inside the fault thread: shared by fault_loop.c, fault.c, fetch.c, failover.c, hedge.c and stream.c. */
#ifndef GHOSTBOX_FAULT_H
#define GHOSTBOX_FAULT_H

#include "pager.h"
#include "turns.h"

/* So many fetches at a time; the slots beyond are for asking a second copy (hedge.c). */
#define DEMAND_MAX      128u
#define READAHEAD_MAX   16u
#define DEMAND_SLOTS    (DEMAND_MAX + 64u)
#define READAHEAD_SLOTS (READAHEAD_MAX + 4u)
#define STREAMS         32u
#define RECENT_FAULTS   32u
#define FETCH_ATTEMPTS  5u /* reads of a page that a donor answers with an error before the page counts as lost */

/*
 * A read from a donor under way: one page for a fault, a run for readahead. It is with one copy of its pages at a
 * time; when that one takes too long, a twin asks another, and the first good answer counts. The other fetch is then
 * "overtaken": nothing but its buffer is of any concern, until its own answer has come.
 */
struct fetch {
    struct request request; /* first */
    struct fetch *next;     /* free list or retry list */
    uint8_t *buf;
    uint32_t page, n_pages;
    struct place place; /* where the request went */
    uint32_t tried;     /* copies that failed in this round, by index */
    uint32_t denied;    /* those of them whose donor has answered: with an error or wrong bytes */
    uint64_t denied_words[COPIES_MAX];
    uint32_t older; /* copies that are not up to date and did not hold these bytes, by index */
    struct fetch *twin;
    uint64_t hedge_ns; /* when another copy is asked, too; 0: never */
    bool is_hedge;
    bool late; /* counted in its donor's n_late */
    bool overtaken;
    uint32_t attempts; /* rounds in which all copies denied it */
    uint64_t retry_ns;
    uint64_t fault_ns; /* when the fault was seen */
    bool demand;
    bool of_stream; /* the page is of a stream that outruns its readahead */
};

/* Accesses at equal distances. Page numbers are pool pages. */
struct stream {
    uint32_t first;   /* where it began */
    uint32_t seen;    /* where the reader was for sure */
    uint32_t last;    /* how far he may have gone: what he was given to go on with */
    int32_t stride;   /* never 0 while in use */
    int64_t frontier; /* the first page that was not asked for yet; may lie outside the pool */
    uint32_t window;  /* steps to ask for next */
    uint32_t n_used;  /* how often it was right */
    bool begun;       /* the reader was here; false: he is expected */
    uint64_t used;    /* for replacement: tick of the last hit; 0: never */
};

struct fault_loop {
    struct pager *pager;
    int epoll_fd;
    struct fetch demand[DEMAND_SLOTS], readahead[READAHEAD_SLOTS];
    struct fetch *free_demand, *free_readahead;
    uint32_t n_demand, n_readahead; /* under way, without those overtaken */
    uint64_t hedge_ns;              /* when the first fetch is due to be hedged; 0: none is, or earlier than it was */
    struct fetch *retry;            /* waiting for retry_ns or for the donor */
    uint8_t *buffers;
    uint32_t readahead_pages;            /* largest window, 0: off */
    struct region *watched[REGIONS_MAX]; /* whose userfaultfd is in the epoll */
    uint32_t n_watched;
    struct stream streams[STREAMS];
    struct stream *reading; /* the one that a reader was seen in last; NULL: it is gone */
    struct turns turns;
    uint64_t tick;
    uint32_t recent[RECENT_FAULTS];           /* the last faults on absent pages */
    uint64_t recent_random_ns[RECENT_FAULTS]; /* when those were that belong to no stream; of others 0 */
    uint32_t n_faults;
    uint64_t n_wasted_seen;
    uint64_t retry_waiting_ns; /* when to look at the waiting list again; 0: only when woken */
    uint64_t now_ns;
    uint64_t spun_ns;            /* when the loop last looked at the clock */
    uint64_t look_ns;            /* when the channels are looked at next: pulse.h */
    uint64_t random_ns;          /* the last fetch that belongs to no stream */
    uint32_t patience;           /* of streams: fetch.c */
    uint64_t readahead_after_ns; /* until then what was read ahead has to wait */
};

/* The page that lies n pages up or down from this one. */
static inline uint32_t step_from(uint32_t page, uint32_t n, bool backwards)
{
    return backwards ? page - n : page + n;
}

/* The lowest page of a run of n pages, up or down from this one. */
static inline uint32_t run_first(uint32_t page, uint32_t n, bool backwards)
{
    return backwards ? page - (n - 1) : page;
}

/* fetch.c: all with the pager's lock held; they drop and take it again around system calls. */
int fetch_init(struct fault_loop *loop);
void fetch_destroy(struct fault_loop *loop);
/* The page is ABSENT and on a donor, and a fault waits for it. Returns false if it has to wait (no slot, no donor).
 */
bool fetch_demand(struct fault_loop *loop, uint32_t page, bool of_stream);
/*
 * Reads ahead what of the run that begins with this page, up or down from it, is absent and on a donor; stops at a
 * page that is not. Returns the pages covered.
 */
uint32_t fetch_readahead(struct fault_loop *loop, uint32_t page, uint32_t n_pages, bool backwards);
/* Installs what has arrived on this channel. Without the lock. */
void fetch_finish(struct fault_loop *loop, struct channel *channel);
/* Whether what comes on this channel has to wait because faults at random come first. */
bool fetch_held_back(const struct fault_loop *loop, const struct channel *channel);
/* Work for this channel took from began_ns to now. */
void fetch_took(struct fault_loop *loop, const struct channel *channel, uint64_t began_ns);
/* Whether there were faults of late that belong to no stream. */
bool fetch_random_access(const struct fault_loop *loop);
/* Sends again what is due. Without the lock. Returns when to call again (0: no need). */
uint64_t fetch_retry(struct fault_loop *loop);

/* The rest of fetch.c is for failover.c and hedge.c; without the lock. */
/* Asks the best copy that was not tried. 0, or -errno: there is none, or none that is connected. */
int fetch_send(struct fault_loop *loop, struct fetch *fetch);
struct fetch *fetch_slot(struct fault_loop *loop, bool demand);
void fetch_slot_give(struct fault_loop *loop, struct fetch *fetch);
/* Its pages are as they are to be: it is under way no more. */
void fetch_over(struct fault_loop *loop, struct fetch *fetch);
void fetch_retry_later(struct fault_loop *loop, struct fetch *fetch, uint64_t after_ns);
/* With the lock. Back to absent, as if never asked for; whoever waits is put on the waiting list. */
void fetch_give_up_page(struct fault_loop *loop, uint32_t page);

/* failover.c: what becomes of a read that failed. Without the lock. */
/* request.error says how; ESTALE: the copy is not what it was when it was asked, EAGAIN: its turn is still to come.
 */
void fetch_failed(struct fault_loop *loop, struct fetch *fetch);
/* Not even sent. */
void fetch_unsent(struct fault_loop *loop, struct fetch *fetch);
/* A copy that is not up to date and may hold these very bytes all the same, to be asked where no better one can be.
 */
bool fetch_pick_older(const struct fault_loop *loop, const struct fetch *fetch, struct place *place);
static inline bool fetch_asks_older(const struct fetch *fetch)
{
    return copy_of_word(fetch->place.word).state != COPY_CURRENT;
}
/* A copy has served: those that denied the page are suspect. */
void fetch_report(struct fault_loop *loop, const struct fetch *fetch);

/* hedge.c. Without the lock. */
/* The copy to ask: the best one, but rather one whose donor has nothing overtaken under way. */
bool hedge_choose(const struct fault_loop *loop, const struct fetch *fetch, struct place *place);
/* The request was sent: notes when to ask another copy, too. */
void hedge_arm(struct fault_loop *loop, struct fetch *fetch);
/* Asks other copies where it is time. */
void hedge_due(struct fault_loop *loop);
/* The request is over, well or not. */
void hedge_answered(struct fetch *fetch);
/* Its answer is good: a twin is overtaken. */
void hedge_won(struct fault_loop *loop, struct fetch *fetch);
/* It failed while its twin is under way: that one goes on alone. Returns false if there is none. */
bool hedge_leave(struct fault_loop *loop, struct fetch *fetch);

/* stream.c */
/*
 * A fault on a page that was not read ahead: finds or starts its stream; returns how many pages may be brought in
 * besides this one.
 */
uint32_t stream_fault(struct fault_loop *loop, uint32_t page, struct stream **stream);
/* The fault that stream_fault() was told of last is fetched from a donor, and belongs to no stream. */
void stream_note_random(struct fault_loop *loop);
/* A page that was read ahead is used. */
struct stream *stream_hit(struct fault_loop *loop, uint32_t page);
/* The reader is at this page now: keeps the frontier ahead of it. With the lock. */
void stream_advance(struct fault_loop *loop, struct stream *stream, uint32_t page);

/* fault.c */
/* Serves what faults have come of this region. Returns whether there was any. Without the lock. */
bool fault_serve_region(struct fault_loop *loop, struct region *region);
/* Everything that waits for a frame, a slot or a donor gets one more try. Without the lock. */
void fault_serve_waiting(struct fault_loop *loop);
/* With the lock. */
void fault_make_wait(struct fault_loop *loop, uint32_t page, uint64_t retry_after_ns);
void fault_installed(struct fault_loop *loop, uint32_t page);

#endif
