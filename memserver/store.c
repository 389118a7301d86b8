/* SPDX-License-Identifier: MIT */
#include "store.h"

#include "common/log.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE_SHIFT 12
#define WORD_BITS  64u
static_assert(STORE_PAGE_BYTES == 1u << PAGE_SHIFT, "page size and shift");

uint64_t store_round_up(uint64_t bytes)
{
    return (bytes + STORE_PAGE_BYTES - 1) & ~(uint64_t)(STORE_PAGE_BYTES - 1);
}

uint64_t store_resident_bytes(const struct store *store)
{
    /* A discard that overtakes the write it undoes may be counted first: below zero for a moment. */
    int64_t pages = (int64_t)atomic_load_explicit(&store->resident_pages, memory_order_relaxed);
    return pages > 0 ? (uint64_t)pages << PAGE_SHIFT : 0;
}

static void *memory_promise(uint64_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    /* EINVAL: a kernel without huge pages, which is as good. */
    if (madvise(memory, bytes, MADV_NOHUGEPAGE) < 0 && errno != EINVAL) {
        log_warning("cannot turn huge pages off: %s", strerror(errno));
    }
    return memory;
}

static uint64_t bitmap_bytes(const struct store *store)
{
    uint64_t pages = store->mapped_bytes >> PAGE_SHIFT;
    return (pages + WORD_BITS - 1) / WORD_BITS * sizeof(uint64_t);
}

int store_open(struct store *store, uint64_t size_bytes)
{
    if (size_bytes == 0 || size_bytes > INT64_MAX - STORE_PAGE_BYTES) {
        return -EINVAL;
    }
    *store = (struct store){.size_bytes = size_bytes, .mapped_bytes = store_round_up(size_bytes)};
    store->memory = memory_promise(store->mapped_bytes);
    if (store->memory == NULL) {
        return -ENOMEM;
    }
    store->allocated = memory_promise(bitmap_bytes(store));
    if (store->allocated == NULL) {
        munmap(store->memory, store->mapped_bytes);
        return -ENOMEM;
    }
    return 0;
}

void store_close(struct store *store)
{
    munmap(store->memory, store->mapped_bytes);
    munmap(store->allocated, bitmap_bytes(store));
    *store = (struct store){0};
}

static uint64_t word_load(const struct store *store, uint64_t index)
{
    return atomic_load_explicit(&store->allocated[index], memory_order_acquire);
}

/* Bits [first, last] of one word. */
static uint64_t word_mask(uint64_t first, uint64_t last)
{
    return (~UINT64_C(0) >> (WORD_BITS - 1 - (last - first))) << first;
}

/* The first page in [page, end) whose bit is `wanted`, or end. */
static uint64_t page_find(const struct store *store, uint64_t page, uint64_t end, bool wanted)
{
    while (page < end) {
        uint64_t word = word_load(store, page / WORD_BITS);
        uint64_t candidates = (wanted ? word : ~word) >> (page % WORD_BITS);
        if (candidates != 0) {
            uint64_t found = page + (uint64_t)__builtin_ctzll(candidates);
            return found < end ? found : end;
        }
        page = (page / WORD_BITS + 1) * WORD_BITS;
    }
    return end;
}

static bool page_is_data(const struct store *store, uint64_t page)
{
    return (word_load(store, page / WORD_BITS) >> (page % WORD_BITS) & 1) != 0;
}

struct store_run store_run_at(const struct store *store, uint64_t offset, uint64_t length)
{
    assert(length > 0 && offset < store->size_bytes && length <= store->size_bytes - offset);
    uint64_t page = offset >> PAGE_SHIFT;
    uint64_t end_page = (offset + length + STORE_PAGE_BYTES - 1) >> PAGE_SHIFT;
    bool is_data = page_is_data(store, page);
    uint64_t run_end_page = page + 1 < end_page ? page_find(store, page + 1, end_page, !is_data) : end_page;
    uint64_t run_bytes = (run_end_page << PAGE_SHIFT) - offset;
    return (struct store_run){.length_bytes = run_bytes < length ? run_bytes : length, .is_data = is_data};
}

static void word_set(struct store *store, uint64_t index, uint64_t mask)
{
    /* Mostly they are set already: a load is cheaper than a locked operation, and shares the cache line. */
    if ((word_load(store, index) & mask) == mask) {
        return;
    }
    uint64_t before = atomic_fetch_or_explicit(&store->allocated[index], mask, memory_order_acq_rel);
    uint64_t added = (uint64_t)__builtin_popcountll(mask & ~before);
    atomic_fetch_add_explicit(&store->resident_pages, added, memory_order_relaxed);
}

void store_mark_written(struct store *store, uint64_t offset, uint64_t length)
{
    if (length == 0) {
        return;
    }
    assert(offset < store->size_bytes && length <= store->size_bytes - offset);
    uint64_t last_page = (offset + length - 1) >> PAGE_SHIFT;
    for (uint64_t page = offset >> PAGE_SHIFT; page <= last_page; page = (page / WORD_BITS + 1) * WORD_BITS) {
        uint64_t word_last = page | (WORD_BITS - 1);
        uint64_t last = word_last < last_page ? word_last : last_page;
        word_set(store, page / WORD_BITS, word_mask(page % WORD_BITS, last % WORD_BITS));
    }
}

/* Clears the bits of pages [page, end); says which was the first and the last that was set. Returns how many were. */
static uint64_t bits_clear(struct store *store, uint64_t page, uint64_t end, uint64_t *first, uint64_t *last)
{
    uint64_t cleared = 0;
    while (page < end) {
        uint64_t base = page / WORD_BITS * WORD_BITS;
        uint64_t word_end = base + WORD_BITS < end ? base + WORD_BITS : end;
        uint64_t mask = word_mask(page % WORD_BITS, (word_end - 1) % WORD_BITS);
        page = word_end;
        if ((word_load(store, base / WORD_BITS) & mask) == 0) {
            continue;
        }
        uint64_t was =
            atomic_fetch_and_explicit(&store->allocated[base / WORD_BITS], ~mask, memory_order_acq_rel) & mask;
        if (was == 0) {
            continue;
        }
        *first = cleared == 0 ? base + (uint64_t)__builtin_ctzll(was) : *first;
        *last = base + WORD_BITS - 1 - (uint64_t)__builtin_clzll(was);
        cleared += (uint64_t)__builtin_popcountll(was);
    }
    atomic_fetch_sub_explicit(&store->resident_pages, cleared, memory_order_relaxed);
    return cleared;
}

/* One madvise over all that was allocated: pages in between hold nothing, so that giving them back costs nothing. */
static void pages_release(struct store *store, uint64_t page, uint64_t end)
{
    uint64_t first = 0;
    uint64_t last = 0;
    if (bits_clear(store, page, end, &first, &last) == 0) {
        return;
    }
    uint8_t *start = store->memory + (first << PAGE_SHIFT);
    uint64_t length = (last - first + 1) << PAGE_SHIFT;
    if (madvise(start, length, MADV_DONTNEED) < 0) {
        /* It must read as zeroes whatever the kernel says. */
        log_warning("cannot give %llu bytes back: %s", (unsigned long long)length, strerror(errno));
        memset(start, 0, length);
        uint64_t offset = first << PAGE_SHIFT;
        store_mark_written(store, offset, length <= store->size_bytes - offset ? length : store->size_bytes - offset);
    }
}

/* Part of one page. A page without data is zero as it is. */
static void part_zero(struct store *store, uint64_t offset, uint64_t length)
{
    if (length > 0 && page_is_data(store, offset >> PAGE_SHIFT)) {
        memset(store->memory + offset, 0, length);
    }
}

void store_discard(struct store *store, uint64_t offset, uint64_t length)
{
    if (length == 0) {
        return;
    }
    assert(offset < store->size_bytes && length <= store->size_bytes - offset);
    uint64_t end = offset + length;
    /* What is behind the end of the export on its last page is nobody's: the page goes as a whole. */
    uint64_t whole_end = end == store->size_bytes ? store->mapped_bytes : end & ~(uint64_t)(STORE_PAGE_BYTES - 1);
    uint64_t whole_start = store_round_up(offset);
    if (whole_start > whole_end) {
        part_zero(store, offset, length);
        return;
    }
    part_zero(store, offset, (whole_start < end ? whole_start : end) - offset);
    pages_release(store, whole_start >> PAGE_SHIFT, whole_end >> PAGE_SHIFT);
    part_zero(store, whole_end, end > whole_end ? end - whole_end : 0);
}

void store_zero(struct store *store, uint64_t offset, uint64_t length)
{
    memset(store->memory + offset, 0, length);
    store_mark_written(store, offset, length);
}
