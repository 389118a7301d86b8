/* SPDX-License-Identifier: MIT */
/* Write-back: dirty pages are sent to their donors: see writeback.c. Evict thread only. */
#ifndef GHOSTBOX_PAGER_WRITEBACK_H
#define GHOSTBOX_PAGER_WRITEBACK_H

#include "evict/evict.h"

/* Makes the stages and writes. Returns 0 or -errno. */
int writeback_init(struct evict_loop *loop);
void writeback_destroy(struct evict_loop *loop);
/*
 * Sends pages, which are sorted, in state WRITEBACK and have PAGE_F_IO. Pages that cannot be sent now become inactive
 * again. Without the lock.
 */
void writeback_start(struct evict_loop *loop, const uint32_t *pages, uint32_t n);
/*
 * Tells the donors to forget these pages, which have PAGE_F_IO until the donors have answered. Returns for how many
 * of the pages, from the first on, the donors are told: fewer than n if too many writes are under way. Without the
 * lock.
 */
uint32_t writeback_forget(struct evict_loop *loop, uint32_t page, uint32_t n);
/* Whether a stage and a write are free. */
bool writeback_possible(const struct evict_loop *loop);
/* Whether a write or trim of this file is under way in this slot. */
bool writeback_touches(const struct evict_loop *loop, uint32_t donor, uint32_t slot);

#endif
