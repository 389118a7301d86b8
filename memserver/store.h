/* SPDX-License-Identifier: MIT */
/*
 * The memory of one export: an anonymous mapping that the kernel fills page by page as it is written, and a bitmap of
 * the pages that hold data. Any number of threads may use a store at the same time.
 *
 * Invariant: a page whose bit is clear holds zeroes, or a request that is still running will zero it or set the bit.
 * Hence the order: a write puts its data into the mapping first and sets the bits after; a discard clears the bits
 * first and gives the memory back after. Once two overlapping requests are done, the bit of every page that holds
 * data is set, whatever their order was.
 *
 * Transparent huge pages are off: one byte written must cost one page, or more memory would be resident than is lent.
 *
 * Stores may share a quota, which bounds the pages that hold data in all of them. A request reserves the pages that
 * it will fill before its first byte is written, so that requests that run at the same time cannot exceed the quota
 * together. (A discard that runs at the same time as a write to the same page may make one page of difference.)
 */
#ifndef GHOSTBOX_STORE_H
#define GHOSTBOX_STORE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define STORE_PAGE_BYTES 4096u

#define STORE_NO_LIMIT UINT64_MAX

/* Pages of all stores that share it. */
struct store_quota {
    _Atomic int64_t pages; /* that hold data, or are reserved */
    _Atomic uint64_t limit_pages;
};

struct store {
    uint8_t *memory;
    uint64_t size_bytes;
    uint64_t mapped_bytes; /* size_bytes rounded up to pages */
    _Atomic uint64_t *allocated;
    _Atomic uint64_t resident_pages;
    struct store_quota *quota; /* NULL: the store has none. It is set before the store is used. */
};

/* A stretch of memory in one state: all data, or all hole. */
struct store_run {
    uint64_t length_bytes;
    bool is_data;
};

/* Promises memory and takes none. Returns 0, -ENOMEM, or -EINVAL if the size is 0 or beyond the address space. */
int store_open(struct store *store, uint64_t size_bytes);
void store_close(struct store *store);

/* Returns the run that starts at offset, at most length bytes of it. The range must be in the store and not empty. */
struct store_run store_run_at(const struct store *store, uint64_t offset, uint64_t length);
/*
 * Reserves the pages of the range that hold no data yet; *reserved is how many, 0 without a limit. Returns false if
 * they are more than the quota has left. Pages that hold data may always be written.
 */
bool store_reserve(struct store *store, uint64_t offset, uint64_t length, uint64_t *reserved);
/* Gives back what was reserved and is not used. */
void store_unreserve(struct store *store, uint64_t reserved);
/* Sets the bits of [offset, offset + length) after data were written there. Takes new pages off *reserved. */
void store_mark_written(struct store *store, uint64_t offset, uint64_t length, uint64_t *reserved);
/* Makes the range read as zeroes; whole pages go back to the operating system. */
void store_discard(struct store *store, uint64_t offset, uint64_t length);
/* Makes the range read as zeroes and keeps, or takes, its memory. Takes new pages off *reserved. */
void store_zero(struct store *store, uint64_t offset, uint64_t length, uint64_t *reserved);

/* How many bytes of pages hold data. */
uint64_t store_resident_bytes(const struct store *store);
/* Rounds up to whole pages. */
uint64_t store_round_up(uint64_t bytes);

#endif
