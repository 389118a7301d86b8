/* SPDX-License-Identifier: MIT */
/*
 * Which pages to keep. All with the pager's lock.
 *
 * The pager sees an access only when it faults, so what it knows of a page is: that it was fetched, that it was used
 * again while it lay inactive, and that it came back soon after it had left.
 *
 *   - A *stream*'s pages (those that were read ahead, and their like) are expected to be used once. They are zapped
 * and go first, as long as more than a fortieth of the cache is mapped: a scan lives on its own pages.
 *   - Any other page that comes in is on *probation*: zapped next, with the same exception.
 *   - A page is *protected* when it is used again while inactive, when it comes back soon after it has left
 *     (a sixteenth of the cache in evictions), or for the third time in a row not long after (half the cache). Pages
 * of streams are so by the third way only, and their evictions do not count for the others.
 *   - What is hot today must not be protected for ever: in the course of five minutes each is zapped once.
 *   - Each use while inactive is worth two more rounds on the inactive list. A dirty page has one for nothing: to let
 *     it go costs twice.
 *
 * After S3-FIFO (Yang, SOSP'23) and 2Q (Johnson, VLDB'94); the figures by simulation of Zipf 0.9 with and without a
 * scanner, and of a change of the hot set: see ARCHITECTURE.md.
 */
#ifndef GHOSTBOX_HEAT_H
#define GHOSTBOX_HEAT_H

#include "pages.h"

/* An epoch is a 32nd of the cache in evictions. */
#define HEAT_EPOCHS 32

/* Where a mapped page stands, or goes. */
struct page_list *heat_mapped(struct page_table *table, uint32_t page);
uint32_t heat_mapped_count(const struct page_table *table);
/* Where an inactive page stands, or goes. */
struct page_list *heat_inactive(struct page_table *table, uint32_t page);
/*
 * The list of mapped pages to zap from, or NULL if there is none. allowed: how many pages of streams, and how many on
 * probation, may stay. now_ns 0: just to know.
 */
struct page_list *heat_zap_list(struct page_table *table, int64_t allowed, uint64_t now_ns);
/* Pages of streams that should be zapped before anything inactive goes. */
int64_t heat_stream_excess(const struct page_table *table, int64_t allowed);
/* A page that was not here comes in because it was accessed. */
void heat_came_in(struct page_table *table, uint32_t page, bool of_stream);
/* A page that lay inactive (or was about to) was used. */
void heat_used(struct page_table *table, uint32_t page);
/* The page is the oldest inactive one. True: it gets another round, one less than before. */
bool heat_spares(struct page_table *table, uint32_t page);
/* The page has left. */
void heat_left(struct page_table *table, uint32_t page);

#endif
