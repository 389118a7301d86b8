/* SPDX-License-Identifier: MIT */
/*
 * Suspects: copies that gave other bytes than were written to them. The fault thread reports them to the evict
 * thread.
 */
#ifndef GHOSTBOX_PAGER_SUSPECTS_H
#define GHOSTBOX_PAGER_SUSPECTS_H

#include <pthread.h>
#include <stdint.h>

#define SUSPECTS_MAX 64u

struct suspect {
    uint32_t extent, copy;
    uint64_t word; /* the copy's word when it was read */
};

struct suspects {
    pthread_mutex_t lock;
    struct suspect list[SUSPECTS_MAX];
    uint32_t
        n; /* when the list is full, further suspects are dropped; they are found again when they are read again */
};

/* Adds a suspect. In any thread. */
void suspects_add(struct suspects *suspects, struct suspect suspect);
/* Takes all suspects and returns how many there were. In any thread. */
uint32_t suspects_take(struct suspects *suspects, struct suspect list[SUSPECTS_MAX]);

#endif
