/* SPDX-License-Identifier: MIT */
/* Fetches: reads from donors, for faults and for readahead. Fault thread only. */
#ifndef GHOSTBOX_PAGER_FETCH_H
#define GHOSTBOX_PAGER_FETCH_H

#include "fault/fault.h"

/* Returns 0 or -ENOMEM. */
int fetch_init(struct fault_loop *loop);
/*
 * Fetches a page for which a fault waits; it is ABSENT and on a donor. Returns false if no slot is free: then nothing
 * is done.
 */
bool fetch_demand_unlocks(struct fault_loop *loop, uint32_t page, bool of_stream);
/*
 * Reads ahead in the run of n_pages that begins with this page and goes up or down from it, as far as the pages are
 * absent and on a donor. Returns how many pages are covered: they are being read, or one is here already; 0: none
 * could be.
 */
uint32_t fetch_readahead_unlocks(struct fault_loop *loop, uint32_t page, uint32_t n_pages, bool backwards);
/* Installs the pages of the answers that have come on this channel. Without the lock. */
void fetch_finish(struct fault_loop *loop, struct channel *channel);
/* Whether the answers on this channel have to wait because faults at random come first. */
bool fetch_held_back(const struct fault_loop *loop, const struct channel *channel);
/* Notes that the thread has worked for this channel from began_ns until now. */
void fetch_took(struct fault_loop *loop, const struct channel *channel, uint64_t began_ns);
/* Sends the fetches of the retry list that are due. Without the lock. Returns when to call again; 0: no need. */
uint64_t fetch_retry(struct fault_loop *loop);

#endif
