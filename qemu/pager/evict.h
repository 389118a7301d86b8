/* SPDX-License-Identifier: MIT */
/* Inside the evict thread: shared by evict.c, writeback.c, discard.c and link.c. */
#ifndef GHOSTBOX_EVICT_H
#define GHOSTBOX_EVICT_H

#include "pager.h"
#include "proto.h"
#include "rebuild.h"

#define BATCH_PAGES  256u
#define STAGES       32u /* and as many as may be under way to copies that are written behind, if there are any */
#define BEHIND_MAX   96u
#define STAGE_PAGES  64u
#define WRITES       256u
#define DISCARDS_MAX 64u

/* Bytes on their way to a donor: a stable copy, so that a fault may take the page back meanwhile. */
struct stage {
    struct stage *next;
    uint8_t *buf; /* STAGE_PAGES pages */
    uint32_t users;
};

enum write_kind {
    WRITE_DATA,   /* write-back of pages in state WRITEBACK */
    WRITE_ZERO,   /* the same for pages that are all zero: a trim */
    WRITE_FORGET, /* a trim after a discard; the pages are in any state */
};

enum part_state { PART_NONE, PART_FLYING, PART_DONE, PART_FAILED };

/* What of a write goes to one copy. */
struct write_part {
    struct request request; /* first */
    struct write_op *op;
    enum part_state state;
    uint64_t word; /* the copy as it was when this was sent */
};

/*
 * The same run of pages to every copy of its extent. It is over when all parts are; but the pages go on (served)
 * before those parts are that are written behind.
 */
struct write_op {
    struct write_op *next;
    enum write_kind kind;
    bool served;
    struct stage *stage;
    uint32_t page, n_pages;
    uint32_t n_flying, n_behind; /* parts under way; those of them that are written behind */
    struct write_part parts[COPIES_MAX];
};

/* What QEMU wants to discard. */
struct discard {
    bool in_use;
    bool ready;      /* READY was sent, END is awaited */
    bool forgetting; /* END has come: the donors are being told; PAGE_F_IO is on the pages from the cursor on */
    uint32_t seq;
    uint32_t first, n_pages; /* pool pages */
    uint32_t cursor;         /* pages before it are DISCARDING; while forgetting: have been told of */
};

enum link_state { LINK_FREE, LINK_HELLO, LINK_REGION, LINK_SERVING };

/* One connection of the shim. */
struct link {
    enum link_state state;
    int fd;
    int pidfd;
    pid_t pid;
    uint64_t opened_ns;
    bool resume;
    char comm[16];
    struct region *region;
    uint32_t zap_seq;
    uint32_t n_zapping; /* pages in the batch, 0: none under way */
    uint32_t zapping[BATCH_PAGES];
    struct discard discards[DISCARDS_MAX];
    uint32_t n_discards;
};

/* Of a donor's writes and trims. */
struct failures {
    uint64_t told_ns;
    uint32_t n; /* since then */
};

struct evict_loop {
    struct pager *pager;
    int epoll_fd;
    struct link links[REGIONS_MAX * 2];
    struct stage stages[STAGES + BEHIND_MAX];
    uint32_t n_stages;
    struct stage *free_stages;
    struct write_op writes[WRITES];
    struct write_op *free_writes;
    uint8_t *buffers;
    uint32_t writes_in_flight;
    uint32_t n_behind; /* writes whose pages have gone on */
    uint64_t lag_ns;   /* when there were too many of them last */
    struct rebuild rebuild;
    struct failures failures[DONORS_MAX];
    uint32_t dropping[BATCH_PAGES * 2];
    uint32_t n_dropping;
    uint64_t writeback_pause_ns;    /* after an error: there is something to be written again then */
    uint64_t paused_ns[DONORS_MAX]; /* the same for each donor: no write-back to it before this */
    uint32_t n_flying[DONORS_MAX];  /* writes of data under way to each donor */
    uint64_t now_ns;                /* when this turn of the loop began */
    uint32_t n_stuck;               /* victims passed over in a row: takes.c */
    uint32_t n_free;                /* victims found since one was passed over */
    uint64_t look_ns;               /* when the channels are looked at next: pulse.h */
    uint64_t hand_over_ns;          /* asked to hand over: when it is done at the latest */
};

/* evict.c */
/* Sorts pool pages, so that neighbours stand together. */
void sort_pages(uint32_t *pages, uint32_t n);
/* The length of the run of neighbours at the start of pages, at most max. */
uint32_t run_length(const uint32_t *pages, uint32_t n, uint32_t max);
/* With the lock: the page (in state DROPPING, on no list) is punched by the next drop_flush(). */
void drop_add(struct evict_loop *loop, uint32_t page);
void drop_flush(struct evict_loop *loop);

/* writeback.c */
int writeback_init(struct evict_loop *loop);
void writeback_destroy(struct evict_loop *loop);
/*
 * Pages in state WRITEBACK, sorted, with PAGE_F_IO set: sends them. Pages that cannot be sent now go back to
 * the inactive list. Without the lock.
 */
void writeback_start(struct evict_loop *loop, const uint32_t *pages, uint32_t n);
/* A part of a write is over. Without the lock. */
void writeback_part_done(struct evict_loop *loop, struct request *request);
/*
 * Tells the donors that they need not keep these pages; PAGE_F_IO is on them until they have answered. Returns how
 * many of the pages, from the first, this covers: fewer than n while too many requests are under way. Without the
 * lock.
 */
uint32_t writeback_forget(struct evict_loop *loop, uint32_t page, uint32_t n);
/* Without the lock. */
void writeback_mark_io(struct pager *pager, uint32_t page, uint32_t n, bool io);
bool writeback_possible(const struct evict_loop *loop);
/* Whether a write or trim of ours is under way in this slot. */
bool writeback_touches(const struct evict_loop *loop, uint32_t donor, uint32_t slot);

/* takes.c */
/* Whether the donors that are to have this page take a write of it now. With or without the lock. */
bool takes_page(const struct evict_loop *loop, uint32_t page);
/* At the begin of each turn of the loop. Without the lock. */
void takes_turn(struct evict_loop *loop);
/* They did not, or with an error: they are left alone for a moment. */
void takes_pause(struct evict_loop *loop, uint32_t page);
/*
 * With the lock. Of the inactive pages looked at, so many could go, and so many could not because no donor takes
 * them. Returns whether there may be others that can.
 */
bool takes_look_on(struct evict_loop *loop, uint32_t n_found, uint32_t n_stuck);

/* discard.c: DISCARD_BEGIN … DISCARD_END. Without the lock. */
void discard_begin(struct evict_loop *loop, struct link *link, const struct gb_range_msg *message);
void discard_end(struct evict_loop *loop, struct link *link, const struct gb_range_msg *message);
/* The connection is gone: what was begun is undone. */
void discard_abandon(struct evict_loop *loop, struct link *link);
/* Goes on with those that wait for pages in motion. Returns whether some still do. */
bool discard_progress(struct evict_loop *loop);

/* link.c */
void link_accept(struct evict_loop *loop);
void link_readable(struct evict_loop *loop, struct link *link);
/*
 * Sends. Returns 0 or -errno: then nothing more goes out, and the connection is closed once what the shim had said is
 * read; that it leaves may be the last of it.
 */
int link_send(struct link *link, const void *message, size_t bytes);
void link_close(struct evict_loop *loop, struct link *link);
/* The connection that serves this region, or NULL. */
struct link *link_of(struct evict_loop *loop, const struct region *region);
struct gb_header link_header(enum gb_msg_type type, uint32_t seq, size_t bytes);

/* zap.c */
/* Takes up to n pages from the head of the resident list out of the guest's page tables. */
void zap_start(struct evict_loop *loop, uint32_t n);
/* False: no such zap is under way. */
bool zap_done(struct evict_loop *loop, struct link *link, const struct gb_done *message);
/* The answer will not come: nothing is known of these pages, so they stay, as written. */
void zap_abandon(struct evict_loop *loop, struct link *link);

/* regions.c: regions come with a connection and go when their process has ended. */
/* Returns the new region, or NULL with errno and a text for the user. Takes the descriptors over on success. */
struct region *region_admit(struct evict_loop *loop, const struct link *link, const struct gb_region *message,
                            const int fds[3], char *text, size_t text_bytes);
/*
 * The region that a shim comes back to, or NULL. Its descriptors are taken if an earlier pager served it; otherwise
 * they are the same as those that we have.
 */
struct region *region_resumed(struct evict_loop *loop, const struct link *link, const struct gb_region *message,
                              const int fds[3], bool *fds_taken);
/*
 * The region's memory is unmapped, or its process has ended: its pages are given up, step by step, by us or by the
 * pager that follows. Its connection, if there is one, is to be closed.
 */
void region_end(struct pager *pager, struct region *region);
/* Ends regions whose process is gone. Returns whether one is still on its way out. */
bool regions_reap(struct evict_loop *loop);

#endif
