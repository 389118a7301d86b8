/* SPDX-License-Identifier: MIT */
/*
 * The reclaim policy: which pages stay in the cache. All functions need the pager's lock.
 *
 * The pager sees an access only when it faults. So it knows of a page that it was fetched, that it was used again
 * while it was inactive, and that it came back soon after it had left.
 *
 *   - The pages of a *stream* (those that were read ahead, or that a stream's fault fetched) are expected to be used
 *     once. They are zapped first, as long as they are more than a fortieth of the cache, and leave first: a scan
 *     evicts its own pages.
 *   - Any other page that comes in is on *probation*. These pages are zapped next, as long as they are more than a
 *     fortieth of the cache.
 *   - A page becomes *protected* when it is used again while it is inactive, when it comes back soon after it has
 *     left (within evictions of a sixteenth of the cache), or when it comes back for the third time in a row not
 *     long after it has left (within half of the cache). Stream pages become protected in the third way only, and
 *     their evictions do not count for other pages.
 *   - Protection ends: each protected page is zapped once in five minutes.
 *   - Each use of an inactive page is worth two more rounds on the inactive list. A dirty page gets one round more,
 *     because its eviction costs a write, too.
 *
 * The policy follows S3-FIFO (Yang, SOSP'23) and 2Q (Johnson, VLDB'94). Its figures come from simulations of Zipf 0.9
 * with and without a scanner, and of a change of the hot set: docs/paging-policy.md.
 */
#ifndef GHOSTBOX_PAGER_RECLAIM_POLICY_H
#define GHOSTBOX_PAGER_RECLAIM_POLICY_H

#include "page/pages.h"

/*
 * One page in so many of the cache is kept inactive: with more of them the choice is better, and costs more MINOR
 * faults than that is worth (docs/paging-policy.md).
 */
#define RECLAIM_INACTIVE_SHARE 10

/* An epoch is over when a 32nd of the cache was evicted. */
#define RECLAIM_EPOCHS 32

/* Returns the list for a mapped page. */
struct page_list *reclaim_mapped(struct page_table *table, uint32_t page);
/* Returns how many pages are on the lists of mapped pages. */
uint32_t reclaim_mapped_count(const struct page_table *table);
/* Returns the list for an inactive page. */
struct page_list *reclaim_inactive(struct page_table *table, uint32_t page);
/*
 * Returns the list of mapped pages to zap from, or NULL if no page is mapped. `allowed` is how many pages of streams,
 * and how many on probation, may stay. With now_ns 0 the time of the next review stays as it is.
 */
struct page_list *reclaim_zap_list(struct page_table *table, int64_t allowed, uint64_t now_ns);
/* Returns how many mapped pages of streams should be zapped before inactive pages leave. */
int64_t reclaim_stream_excess(const struct page_table *table, int64_t allowed);
/* Notes that an absent page comes in because it was accessed. */
void reclaim_came_in(struct page_table *table, uint32_t page, bool of_stream);
/* Notes that a page was used that was inactive, or about to be. */
void reclaim_used(struct page_table *table, uint32_t page);
/* Called for the oldest inactive page. Returns whether it stays for another round, which is taken off its rounds. */
bool reclaim_spares(struct page_table *table, uint32_t page);
/* Notes that a page has left. */
void reclaim_left(struct page_table *table, uint32_t page);
/*
 * Takes a page that is at rest off its list, if it is on one; its state stays, and the caller changes it. Returns
 * false and does nothing if the page is in motion.
 */
bool page_unlist(struct page_table *table, uint32_t page);

#endif
