/* SPDX-License-Identifier: MIT */
/*
 * Where readers turned last time.
 *
 * What a program reads in order lies scattered in the guest's physical memory: a stream of accesses runs through some
 * dozens or hundreds of pages, ends, and goes on somewhere else. But it does the same the next time, as long as the
 * guest does not move its pages. So for each block of the pool this remembers where the reader of a stream that ended
 * in it went on. A stream's readahead ends at the end of such a block, and goes on there.
 *
 * What is remembered may be wrong at any time: it costs pages read ahead for nothing, and is replaced when the reader
 * comes by. It is lost with the pager. Only the fault thread uses it.
 */
#ifndef GHOSTBOX_TURNS_H
#define GHOSTBOX_TURNS_H

#include <stdbool.h>
#include <stdint.h>

/* A quarter of a byte a page; turns in the same block are not told apart. */
#define TURN_BLOCK_PAGES 16u

struct turns {
    uint32_t *blocks; /* the page after the turn, plus 1, and TURN_BACKWARDS; 0: none */
    uint32_t n_pages;
};

struct turn {
    bool known;
    bool backwards; /* how the reader went on */
    uint32_t first; /* with which page */
};

/* 0 or -ENOMEM. */
int turns_create(struct turns *turns, uint32_t n_pages);
void turns_destroy(struct turns *turns);
/* The reader who was seen last at page `from` went on with page `first` of another stream. */
void turns_learn(struct turns *turns, uint32_t from, uint32_t first, bool backwards);
/* The reader went straight on from one page to the other. Returns whether there was a turn on his way. */
bool turns_forget(struct turns *turns, uint32_t from, uint32_t to);
/* The turn of a stream whose readahead has come up to `frontier`, if that is at the end of a block with a turn. */
struct turn turns_at(const struct turns *turns, int64_t frontier, int32_t stride);
/* How many of the n pages from this one on come before the end of a block with a turn. */
uint32_t turns_clip(const struct turns *turns, uint32_t page, uint32_t n, bool backwards);

#endif
