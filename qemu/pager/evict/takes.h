/* SPDX-License-Identifier: MIT */
/* Which donors take writes now: see takes.c. Evict thread only. */
#ifndef GHOSTBOX_PAGER_TAKES_H
#define GHOSTBOX_PAGER_TAKES_H

#include "evict/evict.h"

/* Whether the donors of this page's copies take a write of it now. With or without the lock. */
bool takes_page(const struct evict_loop *loop, uint32_t page);
/*
 * Called at the beginning of each turn of the loop: takes the reserve back once all donors take writes. Without the
 * lock.
 */
void takes_turn(struct evict_loop *loop);
/* Called after a write of this page failed: its donors get no writes for PAUSE_NS. */
void takes_pause(struct evict_loop *loop, uint32_t page);
/*
 * Called after a look at inactive pages: n_found of them can leave, and n_stuck cannot because no donor takes them.
 * Grants the reserve if none can leave. Returns whether a look at further pages may find some that can. With the
 * lock.
 */
bool takes_look_on(struct evict_loop *loop, uint32_t n_found, uint32_t n_stuck);

#endif
