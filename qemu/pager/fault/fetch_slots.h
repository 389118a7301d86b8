/* SPDX-License-Identifier: MIT */
/* The slots for fetches, with their buffers. Fault thread only, with or without the pager's lock. */
#ifndef GHOSTBOX_PAGER_FETCH_SLOTS_H
#define GHOSTBOX_PAGER_FETCH_SLOTS_H

#include "fault/fault.h"

/*
 * Makes all slots. done() is called for each request that was answered; its owner is the loop. Returns 0 or -ENOMEM.
 */
int fetch_slots_create(struct fault_loop *loop, void (*done)(struct request *request));
void fetch_slots_destroy(struct fault_loop *loop);
/*
 * Returns how many demand fetches there may be if one of them is for this page. Half of the slots are kept for pages
 * of donors that can be reached, because fetches from donors that cannot be reached may be many, and wait long.
 */
uint32_t fetch_demand_max(const struct fault_loop *loop, uint32_t page);
/* Takes a free slot and resets it. Returns NULL if none is free. */
struct fetch *fetch_slot(struct fault_loop *loop, bool demand);
/* Gives a slot back. */
void fetch_slot_give(struct fault_loop *loop, struct fetch *fetch);
/* Ends a fetch, once its pages are settled, and gives its slot back. */
void fetch_over(struct fault_loop *loop, struct fetch *fetch);
/* Puts a fetch on the retry list: fetch_retry() sends it after after_ns. */
void fetch_retry_later(struct fault_loop *loop, struct fetch *fetch, uint64_t after_ns);

#endif
