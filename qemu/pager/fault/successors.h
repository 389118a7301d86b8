/* SPDX-License-Identifier: MIT */
/*
 * The successor table: where readers of streams went on last time.
 *
 * Memory that a program reads in order is scattered in the guest's physical memory: a stream of accesses runs through
 * some dozens or hundreds of pages, ends, and goes on somewhere else (a turn). The next time it takes the same turns,
 * as long as the guest does not move its pages. So for each block of the pool the table has the page at which the
 * reader of a stream that ended in the block went on. A stream's readahead ends at the end of such a block, and goes
 * on at that page.
 *
 * An entry may be wrong at any time: then pages are read ahead for nothing, and the entry is replaced when the reader
 * comes to the block. The table is lost with the pager. Fault thread only.
 */
#ifndef GHOSTBOX_PAGER_SUCCESSORS_H
#define GHOSTBOX_PAGER_SUCCESSORS_H

#include <stdbool.h>
#include <stdint.h>

/* An entry has 4 bytes, so the table takes a quarter of a byte a page. A block has one turn at most. */
#define SUCCESSOR_BLOCK_PAGES 16u

struct successors {
    uint32_t *blocks; /* for each block the page after the turn, plus 1, and SUCCESSOR_BACKWARDS; 0: no turn */
    uint32_t n_pages;
};

/* Where a reader goes on. */
struct successor {
    bool known;
    bool backwards; /* the direction of the stream that follows */
    uint32_t first; /* the first page of the stream that follows */
};

/* Makes an empty table. Returns 0 or -ENOMEM. */
int successors_create(struct successors *successors, uint32_t n_pages);
void successors_destroy(struct successors *successors);
/* Notes that the reader that was seen last at page `from` went on with page `first` of another stream. */
void successors_learn(struct successors *successors, uint32_t from, uint32_t first, bool backwards);
/*
 * Notes that the reader went straight on from one page to the other: clears the turns on the way. Returns whether
 * there was one.
 */
bool successors_forget(struct successors *successors, uint32_t from, uint32_t to);
/* Returns the turn of a stream whose readahead ends before `frontier`, if that is the end of a block with a turn. */
struct successor successors_at(const struct successors *successors, int64_t frontier, int32_t stride);
/* Returns how many of the n pages from this one on come before the end of a block with a turn. */
uint32_t successors_clip(const struct successors *successors, uint32_t page, uint32_t n, bool backwards);

#endif
