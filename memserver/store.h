/* SPDX-License-Identifier: MIT */
/*
 * The memory of one export: an anonymous mapping that the kernel fills page by page as it is written, and a bitmap of
 * the pages that hold data. Safe for any number of threads.
 *
 * Invariant: a page whose bit is clear holds zeroes, or a request that is still running will zero it or set the bit.
 * Hence the order: a write puts its data into the mapping first and sets the bits after; a discard clears the bits
 * first and gives the memory back after. Whatever two overlapping requests do at the same time, no page ever holds
 * data that its bit denies once both are done.
 *
 * No transparent huge pages: one byte written must cost one page, or resident memory would exceed what was sold.
 */
#ifndef GHOSTBOX_STORE_H
#define GHOSTBOX_STORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define STORE_PAGE_BYTES 4096u

struct store {
    uint8_t *memory;
    uint64_t size_bytes;
    uint64_t mapped_bytes; /* size_bytes rounded up to pages */
    _Atomic uint64_t *allocated;
    _Atomic uint64_t resident_pages;
};

/* A stretch in one state: all data, or all hole. */
struct store_run {
    uint64_t length_bytes;
    bool is_data;
};

/* Promises memory, takes none. Returns 0, -ENOMEM or -EINVAL (size 0 or beyond the address space). */
int store_open(struct store *store, uint64_t size_bytes);
void store_close(struct store *store);

/* The run that starts at offset, cut at length bytes. The range must be in the store and not empty. */
struct store_run store_run_at(const struct store *store, uint64_t offset, uint64_t length);
/* Says that [offset, offset + length) of memory has been written. */
void store_mark_written(struct store *store, uint64_t offset, uint64_t length);
/* Makes the range read as zeroes; whole pages go back to the operating system. */
void store_discard(struct store *store, uint64_t offset, uint64_t length);
/* Makes the range read as zeroes and keeps, or takes, its memory. */
void store_zero(struct store *store, uint64_t offset, uint64_t length);

uint64_t store_resident_bytes(const struct store *store);
uint64_t store_round_up(uint64_t bytes);

#endif
