/* SPDX-License-Identifier: MIT */
/* The state of the evict thread: connections of shims, writes to donors, the rebuild. Only this thread uses it. */
#ifndef GHOSTBOX_EVICT_H
#define GHOSTBOX_EVICT_H

#include "link/link.h"
#include "loop.h"
#include "pager.h"
#include "rebuild/rebuild.h"

#define STAGES      32u /* with a backup there are BEHIND_MAX more */
#define BEHIND_MAX  96u
#define STAGE_PAGES 64u
#define WRITES      256u

/* A stage: a copy of pages on their way to donors, which stays as it is if a fault takes a page back meanwhile. */
struct stage {
    struct stage *next;
    uint8_t *buf; /* STAGE_PAGES pages */
    uint32_t users;
};

enum write_kind {
    WRITE_DATA,   /* write-back of pages in state WRITEBACK */
    WRITE_ZERO,   /* write-back of pages that are all zero, by a trim */
    WRITE_FORGET, /* a trim after a discard; the pages may be in any state */
};

enum part_state { PART_NONE, PART_FLYING, PART_DONE, PART_FAILED };

/* The part of a write that goes to one copy. */
struct write_part {
    struct request request; /* first */
    struct write_op *op;
    enum part_state state;
    uint64_t word; /* the copy's word when this part was sent */
};

/*
 * A write: one run of pages to all copies of its extent. It is over when all its parts are. Its pages go on before
 * that
 * (`served`), when all parts are over but those to the backup, which is written behind.
 */
struct write_op {
    struct write_op *next;
    enum write_kind kind;
    bool served;
    struct stage *stage;
    uint32_t page, n_pages;
    uint32_t n_flying, n_behind; /* parts under way, and those of them to the backup */
    struct write_part parts[COPIES_MAX];
};

/* The failures of one donor's writes and trims. */
struct failures {
    uint64_t told_ns; /* when a failure was logged last */
    uint32_t n;       /* failures since then */
};

struct evict_loop {
    struct pager *pager;
    struct loop loop; /* the epoll, and the write-back connections */
    struct links links;
    struct stage stages[STAGES + BEHIND_MAX];
    uint32_t n_stages;
    struct stage *free_stages;
    struct write_op writes[WRITES];
    struct write_op *free_writes;
    uint8_t *buffers;
    uint32_t writes_in_flight;
    uint32_t n_behind; /* writes that are served and not over */
    struct rebuild rebuild;
    struct failures failures[DONORS_MAX];
    uint32_t dropping[BATCH_PAGES * 2];
    uint32_t n_dropping;
    uint64_t writeback_pause_ns;    /* when writes are tried again after the last error */
    uint64_t paused_ns[DONORS_MAX]; /* when each donor is written to again after an error */
    uint32_t n_flying[DONORS_MAX];  /* writes of data under way to each donor */
    uint64_t now_ns;                /* when this turn of the loop began */
    uint32_t n_stuck;               /* dirty pages passed over in a row, because no donor takes them: takes.c */
    uint32_t n_free;                /* victims found since a page was passed over */
    uint64_t hand_over_ns;          /* when a hand-over ends at the latest; 0: none was asked for */
};

#endif
