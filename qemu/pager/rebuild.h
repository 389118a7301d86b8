/* SPDX-License-Identifier: MIT */
/*
 * Inside the evict thread: brings every extent to the copies that it should have. rebuild.c fills a copy,
 * rebuild_plan.c says which one is next, slots.c has the donors' slots.
 */
#ifndef GHOSTBOX_REBUILD_H
#define GHOSTBOX_REBUILD_H

#include "pool.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define CHUNKS      8u
#define CHUNK_PAGES 64u
#define NOT_A_COPY  COPIES_MAX

struct evict_loop;
struct pager;

enum chunk_state { CHUNK_IDLE, CHUNK_READING, CHUNK_WRITING };

/* A run of pages on its way from one copy to another. They have PAGE_F_IO. */
struct chunk {
    struct request request; /* first */
    enum chunk_state state;
    uint8_t *buf; /* CHUNK_PAGES pages */
    uint32_t page, n_pages;
    uint32_t attempts, tried_mask;
    struct place source;
};

/* What the plan wants next. */
struct fill_job {
    uint32_t extent;
    uint32_t copy;      /* the place in the extent that is to be filled */
    struct copy target; /* FILLING */
    uint32_t drop;      /* the copy that goes when that is done, or NOT_A_COPY */
};

struct slot_trim {
    struct request request; /* first */
    bool busy;
    uint32_t slot;
    uint64_t at; /* bytes of the slot that are trimmed */
};

struct rebuild {
    bool asked; /* something has changed: plan at once */
    uint64_t plan_ns;
    uint64_t pause_ns;                /* after a failure */
    uint32_t cursor;                  /* the extent that the next plan begins with */
    uint32_t *unsettled, n_unsettled; /* extents that the last plan found something to do about, in order */
    bool may_make_room;
    uint64_t lost_seen; /* a bit for each donor whose loss was told */

    bool filling;
    bool failed;
    struct fill_job job;
    uint64_t job_word; /* of the copy while it is filled */
    uint64_t *todo;    /* a bit for each page of the extent */
    uint32_t n_todo, next;
    struct chunk chunks[CHUNKS];
    uint8_t *buffers;
    uint32_t n_flying;
    uint64_t next_ns; /* rate: not before this */

    struct slot_trim trims[DONORS_MAX];
};

/* What others may look at. */
struct rebuild_status {
    _Atomic uint64_t rate; /* bytes a second, 0: no limit */
    _Atomic uint64_t done_bytes;
    _Atomic bool active;
    _Atomic uint32_t extents_left; /* that lack good copies */
    _Atomic bool asked;            /* plan at once */
};

/* rebuild.c. Returns 0 or -errno. */
int rebuild_init(struct evict_loop *loop);
void rebuild_destroy(struct evict_loop *loop);
/* Goes on with it. Returns in how many milliseconds to call again at the latest, -1: when something happens. */
int rebuild_turn(struct evict_loop *loop);
/* Of a request on a write-back channel: whether it is the rebuild's, and then what comes next. */
bool rebuild_request_done(struct evict_loop *loop, struct request *request);
/* This copy, if it still is the one of that word, missed a write or is no good: it is STALE. */
void rebuild_copy_missed(struct evict_loop *loop, uint32_t extent, uint32_t copy, uint64_t word);

/* rebuild_plan.c. Gives up copies that are superfluous; whether there is a copy to fill, and which one. */
bool plan_next(struct evict_loop *loop, struct fill_job *job);
/* How many extents lack good copies, of those that the plan before it saw. */
uint32_t plan_left(struct evict_loop *loop);

/* lost.c. Donors that count as lost from now on, and what only they held. */
void lost_mind(struct evict_loop *loop);
/* Pages that only donors that are lost hold, not counting those that are poisoned. Any thread. */
uint64_t lost_pages(struct pager *pager, uint32_t extent);
/* Whether there is room for a copy of an extent that has no good one; takes it. */
bool plan_room(struct evict_loop *loop, uint32_t extent);
bool plan_empty_copy(struct evict_loop *loop, uint32_t extent, struct copy *copy);

/* slots.c */
/* Takes a free slot, or returns false. */
bool slot_claim(struct donor *donor, uint32_t *slot);
void slot_give_up(struct donor *donor, uint32_t slot);
uint32_t slots_free(const struct donor *donor);
/* Trims what was given up, as far as that is possible now. */
void slots_mind(struct evict_loop *loop);
void slot_trim_done(struct evict_loop *loop, struct slot_trim *trim);
/* The copy is given up. */
void copy_drop(struct evict_loop *loop, uint32_t extent, uint32_t copy);

/* Whether a donor can be written to by the evict thread now; and whether it counts on it to stay. */
bool donor_reachable(const struct donor *donor);
bool donor_stays(const struct pager *pager, const struct donor *donor);

#endif
