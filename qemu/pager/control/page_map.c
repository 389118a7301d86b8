/* SPDX-License-Identifier: MIT */
/*
 * The control command page-map, for `ghostbox top`: each region is cut into cells of about equally many pages, and
 * the pages of a cell are counted by where they are.
 *
 * The fault thread needs the lock that guards the states. So the map takes the lock for SLICE_PAGES at a time, which
 * are read in some 10 µs, and leaves it alone for PAUSE_NS in between: a mutex is not fair, and without the pause a
 * thread that was woken for it would find it taken again and again. So the map shows no single moment, and its sums
 * need not be those of `status`.
 *
 * Most of a large region is often untouched. The entries of untouched pages have no memory (pages.h), and reading
 * them would make page tables for them. So mincore(2) tells which parts of the table have memory; the other parts are
 * skipped without the lock.
 */
#include "control/page_map.h"

#include "pager.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define CELLS_DEFAULT 256u
#define CELLS_MAX     4096u
#define SLICE_PAGES   4096u /* their states are SLICE_PAGES * sizeof(struct page) = 64 KiB, whole pages of memory */
#define SLICE_BYTES   (SLICE_PAGES * sizeof(struct page))
#define PAUSE_NS      50000

/* Where a page is. DIRTY is no place: it counts the pages at any place that the donor does not have as they are. */
enum page_place {
    PLACE_ABSENT,
    PLACE_REMOTE,
    PLACE_RESIDENT,
    PLACE_INACTIVE,
    PLACE_MOVING,
    PLACE_POISONED,
    DIRTY,
    PLACES
};

static const char *const place_names[PLACES] = {"absent", "remote",   "resident", "inactive",
                                                "moving", "poisoned", "dirty"};

struct cell {
    uint32_t counts[PLACES];
};

struct map {
    struct region region; /* a copy of the region as it was when the map was begun */
    uint32_t index;       /* of the region in pager->regions */
    uint32_t n_cells;
    struct cell *cells;
    uint32_t cell, cell_end; /* the cell that is being counted, and the first page after it */
};

static enum page_place place_of(const struct page_table *table, uint32_t page)
{
    switch ((enum page_state)table->pages[page].state) {
    case PAGE_ABSENT:
        return page_on_donor(table, page) ? PLACE_REMOTE : PLACE_ABSENT;
    case PAGE_RESIDENT:
        return PLACE_RESIDENT;
    case PAGE_INACTIVE:
        return PLACE_INACTIVE;
    case PAGE_POISONED:
        return PLACE_POISONED;
    default:
        return PLACE_MOVING;
    }
}

/* Returns the cell of the n-th page of the region. n never goes down from one call to the next. */
static struct cell *cell_of(struct map *map, uint32_t n)
{
    while (n >= map->cell_end) {
        if (map->cell_end > 0)
            map->cell++;
        map->cell_end = (uint32_t)((uint64_t)(map->cell + 1) * map->region.n_pages / map->n_cells);
    }
    return &map->cells[map->cell];
}

/* Counts pages [first, end) of the region. With the lock. */
static void slice_count(struct map *map, const struct page_table *table, uint32_t first, uint32_t end)
{
    for (uint32_t n = first; n < end; n++) {
        uint32_t page = map->region.first_page + n;
        struct cell *cell = cell_of(map, n);

        cell->counts[place_of(table, page)]++;
        cell->counts[DIRTY] += (table->pages[page].flags & PAGE_F_DIRTY) != 0;
    }
}

/* Counts pages [first, end) of the region, which were never touched and so are all alike. */
static void slice_skip(struct map *map, const struct page_table *table, uint32_t first, uint32_t end)
{
    enum page_place place = table->keep ? PLACE_REMOTE : PLACE_ABSENT;

    while (first < end) {
        struct cell *cell = cell_of(map, first);
        uint32_t upto = map->cell_end < end ? map->cell_end : end;

        cell->counts[place] += upto - first;
        first = upto;
    }
}

/* Whether an entry of these pages has memory. True if mincore() fails: then the entries are read. */
static bool slice_is_there(const struct page_table *table, uint32_t page, uint32_t n)
{
    unsigned char there[SLICE_BYTES / PAGE_BYTES + 1];
    uintptr_t from = (uintptr_t)&table->pages[page] & ~(uintptr_t)(PAGE_BYTES - 1);
    uintptr_t to = (uintptr_t)&table->pages[page + n];
    size_t n_parts = (to - from + PAGE_BYTES - 1) / PAGE_BYTES;

    return mincore((void *)from, to - from, there) < 0 || memchr(there, 1, n_parts) != NULL;
}

/* Whether the region is still the one that the map was begun for. */
static bool region_is_same(const struct pager *pager, const struct map *map)
{
    const struct region *now = &pager->regions[map->index], *then = &map->region;

    pager_assert_locked(pager);
    return now->in_use && now->id == then->id && now->pid == then->pid && now->first_page == then->first_page &&
           now->n_pages == then->n_pages;
}

/* Counts all pages of the region. Returns false if the region ended meanwhile, or the pager ends. */
static bool map_fill(struct pager *pager, struct map *map)
{
    const struct timespec pause = {.tv_nsec = PAUSE_NS};
    bool same = true;

    for (uint32_t n = 0; same && n < map->region.n_pages; n += SLICE_PAGES) {
        uint32_t left = map->region.n_pages - n, end = n + (left < SLICE_PAGES ? left : SLICE_PAGES);

        if (!slice_is_there(&pager->table, map->region.first_page + n, end - n)) {
            slice_skip(map, &pager->table, n, end);
            continue;
        }
        pager_lock(pager);
        same = region_is_same(pager, map);
        if (same)
            slice_count(map, &pager->table, n, end);
        pager_unlock(pager);
        nanosleep(&pause, NULL);
        same = same && !atomic_load(&pager->stopping);
    }
    return same;
}

static json_t *map_to_json(const struct map *map)
{
    json_t *object = json_pack("{s:i, s:i, s:I}", "id", (int)map->region.id, "pid", (int)map->region.pid,
                               "length_bytes", (json_int_t)map->region.length);

    for (int place = 0; place < PLACES; place++) {
        json_t *counts = json_array();

        for (uint32_t i = 0; i < map->n_cells; i++)
            json_array_append_new(counts, json_integer(map->cells[i].counts[place]));
        json_object_set_new(object, place_names[place], counts);
    }
    return object;
}

/* Returns the map of a region, or NULL if it is not in use, or ended meanwhile. */
static json_t *region_map(struct pager *pager, uint32_t index, uint32_t n_cells)
{
    struct map map = {.index = index};
    json_t *result = NULL;

    pager_lock(pager);
    map.region = pager->regions[index];
    pager_unlock(pager);
    if (!map.region.in_use || map.region.n_pages == 0)
        return NULL;
    map.n_cells = n_cells < map.region.n_pages ? n_cells : map.region.n_pages;
    map.cells = calloc(map.n_cells, sizeof(*map.cells));
    if (map.cells && map_fill(pager, &map))
        result = map_to_json(&map);
    free(map.cells);
    return result;
}

json_t *page_map_command(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;
    const json_t *wanted = json_object_get(args, "cells");
    json_int_t n_cells = wanted ? json_integer_value(wanted) : CELLS_DEFAULT;

    if ((wanted && !json_is_integer(wanted)) || n_cells < 1 || n_cells > CELLS_MAX)
        return control_fail(err, "invalid", "cells must be a whole number from 1 to %u", CELLS_MAX);
    json_t *regions = json_array();

    for (uint32_t i = 0; i < REGIONS_MAX; i++) {
        json_t *map = region_map(pager, i, (uint32_t)n_cells);

        if (map)
            json_array_append_new(regions, map);
    }
    return json_pack("{s:o}", "regions", regions);
}
