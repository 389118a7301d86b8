/* SPDX-License-Identifier: MIT */
/*
 * The rebuild brings each extent to the copies that it should have: plan.c says which copy is filled next, fill.c
 * fills it, trim.c trims slots that were given up, and lost.c handles the pages that only lost donors held. Evict
 * thread only.
 */
#ifndef GHOSTBOX_REBUILD_H
#define GHOSTBOX_REBUILD_H

#include "pager.h"
#include "pool/pool.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define CHUNKS      8u
#define CHUNK_PAGES 64u
#define NOT_A_COPY  COPIES_MAX

enum chunk_state { CHUNK_IDLE, CHUNK_READING, CHUNK_WRITING };

/* A run of pages on its way from one copy to another. The pages have PAGE_F_IO. */
struct chunk {
    struct request request; /* first */
    enum chunk_state state;
    uint8_t *buf; /* CHUNK_PAGES pages */
    uint32_t page, n_pages;
    uint32_t attempts, tried_mask;
    struct place source;
};

/* The copy that the plan wants filled next. */
struct fill_job {
    uint32_t extent;
    uint32_t copy;      /* the place of the copy in the extent */
    struct copy target; /* the copy, in state FILLING */
    uint32_t drop;      /* the copy that is dropped when the new one is CURRENT, or NOT_A_COPY */
};

/* The trim of a slot that was given up; one at a time for each donor. */
struct slot_trim {
    struct request request; /* first */
    bool busy;
    uint32_t slot;
    uint64_t at; /* how many bytes of the slot are trimmed */
};

struct rebuild {
    struct pager *pager;
    /* Whether a write or trim of write-back is under way in this slot. */
    bool (*writes_touch)(const void *writes, uint32_t donor, uint32_t slot);
    const void *writes;
    uint64_t lag_ns;   /* when the backup was last left out of a write because it could not keep up; 0: never */
    bool asked;        /* something has changed: plan at once */
    uint64_t plan_ns;  /* when to plan next if nothing changes */
    uint64_t pause_ns; /* no plan before this time, after a failure */
    uint32_t cursor;   /* the extent with which the next plan begins */
    uint32_t *unsettled, n_unsettled; /* the extents that the last plan found unsettled, in order */
    bool may_make_room;
    uint64_t lost_seen; /* a bit for each donor whose loss was logged */
    uint64_t lost_ns;   /* when to look for lost donors again */

    bool filling;
    bool failed;
    struct fill_job job;
    uint64_t job_word; /* the copy's word while it is filled */
    uint64_t *todo;    /* a bit for each page of the extent that is still to be looked at */
    uint32_t n_todo, next;
    struct chunk chunks[CHUNKS];
    uint8_t *buffers;
    uint32_t n_flying;
    uint64_t rate;    /* bytes a second, by which next_ns was reckoned; 0: no limit */
    uint64_t next_ns; /* with a rate: no run is read before this time */

    struct slot_trim trims[DONORS_MAX];
};

#endif
