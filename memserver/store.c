/* SPDX-License-Identifier: MIT */
#include "store.h"

#include "common/log.h"
#include "common/page_memory.h"

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
    /* A discard may be counted before the write that it undoes: the counter may be below zero for a moment. */
    int64_t pages = (int64_t)atomic_load_explicit(&store->resident_pages, memory_order_relaxed);
    return pages > 0 ? (uint64_t)pages << PAGE_SHIFT : 0;
}

static void *memory_promise(uint64_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    /* A kernel without transparent huge pages returns EINVAL: there is nothing to turn off. */
    if (madvise(memory, bytes, MADV_NOHUGEPAGE) < 0 && errno != EINVAL) {
        log_warning("cannot turn huge pages off: %s", strerror(errno));
    }
    page_memory_hide(memory, bytes);
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

/* Counts pages that hold data, or are reserved, more or fewer. */
static void quota_add(struct store *store, int64_t pages)
{
    if (store->quota != NULL && pages != 0) {
        atomic_fetch_add_explicit(&store->quota->pages, pages, memory_order_relaxed);
    }
}

void store_close(struct store *store)
{
    quota_add(store, -(int64_t)atomic_load(&store->resident_pages));
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

/* Returns the first page in [page, end) whose bit is `wanted`, or end if there is none. */
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

/* Sets bits. Returns how many of them were clear. */
static uint64_t word_set(struct store *store, uint64_t index, uint64_t mask)
{
    /*
     * The bits are mostly set already, and a load is cheaper than an atomic write: it leaves the cache line shared.
     */
    if ((word_load(store, index) & mask) == mask) {
        return 0;
    }
    uint64_t before = atomic_fetch_or_explicit(&store->allocated[index], mask, memory_order_acq_rel);
    uint64_t added = (uint64_t)__builtin_popcountll(mask & ~before);
    atomic_fetch_add_explicit(&store->resident_pages, added, memory_order_relaxed);
    return added;
}

/* Returns how many pages of [page, end) hold no data. */
static uint64_t holes_count(const struct store *store, uint64_t page, uint64_t end)
{
    uint64_t n = 0;
    while (page < end) {
        uint64_t word_end = (page / WORD_BITS + 1) * WORD_BITS;
        uint64_t last = (word_end < end ? word_end : end) - 1;
        uint64_t mask = word_mask(page % WORD_BITS, last % WORD_BITS);
        n += (uint64_t)__builtin_popcountll(~word_load(store, page / WORD_BITS) & mask);
        page = last + 1;
    }
    return n;
}

bool store_reserve(struct store *store, uint64_t offset, uint64_t length, uint64_t *reserved)
{
    *reserved = 0;
    uint64_t limit = store->quota != NULL ? atomic_load_explicit(&store->quota->limit_pages, memory_order_relaxed)
                                          : STORE_NO_LIMIT;
    if (limit == STORE_NO_LIMIT || length == 0) {
        return true;
    }
    assert(offset < store->size_bytes && length <= store->size_bytes - offset);
    uint64_t n = holes_count(store, offset >> PAGE_SHIFT, ((offset + length - 1) >> PAGE_SHIFT) + 1);
    if (n == 0) {
        return true;
    }
    int64_t before = atomic_fetch_add_explicit(&store->quota->pages, (int64_t)n, memory_order_relaxed);
    if (before > (int64_t)limit || n > limit - (uint64_t)(before > 0 ? before : 0)) {
        quota_add(store, -(int64_t)n);
        return false;
    }
    *reserved = n;
    return true;
}

void store_unreserve(struct store *store, uint64_t reserved)
{
    quota_add(store, -(int64_t)reserved);
}

void store_mark_written(struct store *store, uint64_t offset, uint64_t length, uint64_t *reserved)
{
    if (length == 0) {
        return;
    }
    uint64_t added = 0;
    assert(offset < store->size_bytes && length <= store->size_bytes - offset);
    uint64_t last_page = (offset + length - 1) >> PAGE_SHIFT;
    for (uint64_t page = offset >> PAGE_SHIFT; page <= last_page; page = (page / WORD_BITS + 1) * WORD_BITS) {
        uint64_t word_last = page | (WORD_BITS - 1);
        uint64_t last = word_last < last_page ? word_last : last_page;
        added += word_set(store, page / WORD_BITS, word_mask(page % WORD_BITS, last % WORD_BITS));
    }
    uint64_t used = added < *reserved ? added : *reserved;
    *reserved -= used;
    quota_add(store, (int64_t)(added - used));
}

/*
 * Clears the bits of pages [page, end). Returns how many of them were set; if any was, *first and *last are the first
 * and the last such page.
 */
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
    quota_add(store, -(int64_t)cleared);
    return cleared;
}

/* Gives all pages with data back by one madvise(): the pages between them have no memory, so they cost nothing. */
static void pages_release(struct store *store, uint64_t page, uint64_t end)
{
    uint64_t first = 0;
    uint64_t last = 0;
    if (bits_clear(store, page, end, &first, &last) == 0) {
        return;
    }
    uint8_t *start = store->memory + (first << PAGE_SHIFT);
    uint64_t length = (last - first + 1) << PAGE_SHIFT;
    int rc = page_memory_release(start, length);
    if (rc < 0) {
        /* The range must read as zeroes even if the kernel refuses. */
        log_warning("cannot give %llu bytes back: %s", (unsigned long long)length, strerror(-rc));
        memset(start, 0, length);
        uint64_t offset = first << PAGE_SHIFT;
        uint64_t none = 0;
        store_mark_written(store, offset, length <= store->size_bytes - offset ? length : store->size_bytes - offset,
                           &none);
    }
}

/* Zeroes a part of one page. A page without data is zero already. */
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
    /* Nothing uses the bytes of the last page that lie behind the export's end, so the page goes back as a whole. */
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

void store_zero(struct store *store, uint64_t offset, uint64_t length, uint64_t *reserved)
{
    memset(store->memory + offset, 0, length);
    store_mark_written(store, offset, length, reserved);
}
