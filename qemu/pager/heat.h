/* SPDX-License-Identifier: MIT */
/*
 * Which pages to keep. All with the pager's lock.
 *
 * The pager sees an access only when it faults, so what it knows of a page is: that it was fetched, that it was used
 * again while it lay inactive, and that it came back soon after it had left.
 *
 *   - A page that comes in is on *probation*: the first to be zapped, as long as those on probation are more than a
 *     twentieth of the cache. A scan passes through probation and displaces nothing.
 *   - A page is *protected* when it is used again while inactive, when it comes back soon after it has left
 *     (a twentieth of the cache in evictions), or for the third time in a row not long after (half the cache).
 *   - A scan must not leave yesterday's hot pages protected for ever: in the course of five minutes each is zapped
 * once.
 *   - Each use while inactive is worth two more rounds on the inactive list. A dirty page has one for nothing: to let
 *     it go costs twice.
 *
 * After S3-FIFO (Yang, SOSP'23) and 2Q (Johnson, VLDB'94); the figures by simulation of Zipf 0.9 with and without a
 * scanner, and of a change of the hot set: see ARCHITECTURE.md.
 */
#ifndef GHOSTBOX_HEAT_H
#define GHOSTBOX_HEAT_H

#include "pages.h"

/* An epoch is a 64th of the cache in evictions. */
#define HEAT_EPOCHS 64

/* Where the page stands, or goes, among those that are mapped. */
struct page_list *heat_list(struct page_table *table, uint32_t page);
/* The list of mapped pages to zap from, or NULL if there is none. probation_pages: how many may stay on probation.
 * now_ns 0: just to know. */
struct page_list *heat_zap_list(struct page_table *table, int64_t probation_pages, uint64_t now_ns);
/* A page that was not here comes in because it was accessed. */
void heat_came_in(struct page_table *table, uint32_t page);
/* A page that lay inactive (or was about to) was used. */
void heat_used(struct page_table *table, uint32_t page);
/* The page is the oldest inactive one. True: it gets another round, one less than before. */
bool heat_spares(struct page_table *table, uint32_t page);
/* The page has left. */
void heat_left(struct page_table *table, uint32_t page);

#endif
