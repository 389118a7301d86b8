/* SPDX-License-Identifier: MIT */
#include "evict/reap.h"

#include "base/clock.h"
#include "evict/writeback.h"
#include "page/reclaim_policy.h"
#include "regions/regions.h"

#include <poll.h>

#define DONORS_WAIT_NS 5000000000ull

static bool process_ended(const struct region *region)
{
    struct pollfd fd = {.fd = region->pidfd, .events = POLLIN};

    return poll(&fd, 1, 0) == 1;
}

/* Makes a page ABSENT. Returns false if it is in motion. With the lock. */
static bool release_page(struct pager *pager, uint32_t page)
{
    struct page_table *table = &pager->table;

    pager_assert_locked(pager);
    if (!page_unlist(table, page))
        return false;
    if (page_is_here(table, page))
        table->counts.present--;
    page_set_dirty(table, page, false);
    page_set_state(table, page, PAGE_ABSENT);
    return true;
}

/*
 * Makes all pages of a region ABSENT. Its process has ended, and the fault thread watches it no more. Returns whether
 * all pages are; pages in motion are left for the next call.
 */
static bool dissolve(struct pager *pager, struct region *region)
{
    uint32_t end = region->first_page + region->n_pages;
    bool done = true;

    for (uint32_t page = region->first_page; page < end; page++) {
        /* The lock is released now and then, so that faults of other regions are served. */
        if ((page - region->first_page) % 1024 == 0) {
            if (page > region->first_page)
                pager_unlock(pager);
            pager_lock(pager);
        }
        const struct page *p = &pager->table.pages[page];

        if (p->state == PAGE_ABSENT && p->flags == 0)
            continue;
        done = release_page(pager, page) && done;
    }
    pager_unlock(pager);
    return done;
}

/* Tells the donors to forget the region's pages, unless --contents keep is set. Returns whether all were told. */
static bool tell_donors(struct evict_loop *loop, struct region *region)
{
    uint32_t left = region->n_pages - region->n_told;

    if (!loop->pager->table.keep)
        left -= writeback_forget(loop, region->first_page + region->n_told, left);
    else
        left = 0;
    region->n_told = region->n_pages - left;
    return left == 0;
}

/*
 * Whether a donor is still expected to connect. After a takeover donors are connected in the background; they have to
 * be told to forget the pages, unless connecting takes longer than DONORS_WAIT_NS.
 */
static bool donors_expected(const struct pager *pager)
{
    bool expected = false;

    for (uint32_t i = 0; i < pager->pool.n_donors; i++) {
        const struct donor *donor = &pager->pool.donors[i];

        expected = expected || (donor->channels[CHANNEL_WRITEBACK].inherited && !atomic_load(&donor->lost));
    }
    return expected && clock_ns() - pager->started_ns < DONORS_WAIT_NS;
}

/*
 * Makes the entries of the region's pages untouched again, once no trim of them is under way. Returns whether it did.
 */
static bool forgotten(struct pager *pager, const struct region *region)
{
    bool clear = true;

    pager_lock(pager);
    for (uint32_t page = region->first_page; page < region->first_page + region->n_pages && clear; page++)
        clear = !(pager->table.pages[page].flags & PAGE_F_IO);
    if (clear)
        page_table_forget(&pager->table, region->first_page, region->n_pages);
    pager_unlock(pager);
    return clear;
}

static void reap(struct evict_loop *loop, struct region *region)
{
    struct pager *pager = loop->pager;

    pager_lock(pager);
    bool watched = region->watched;

    pager_unlock(pager);
    if (watched)
        return;
    region->dissolved = region->dissolved || dissolve(pager, region);
    if (!region->dissolved || donors_expected(pager) || !tell_donors(loop, region) || !forgotten(pager, region))
        return;
    pager_lock(pager);
    region_close_fds(region);
    region->in_use = false;
    state_set_region(&pager->state, region->id, STATE_REGION_FREE);
    pager_unlock(pager);
}

bool regions_reap(struct evict_loop *loop)
{
    struct pager *pager = loop->pager;
    bool leaving = false;

    for (uint32_t i = 0; i < REGIONS_MAX; i++) {
        struct region *region = &pager->regions[i];

        if (!region->in_use)
            continue;
        /* A process that ends closes its connection, so only regions without a connection are checked. */
        if (!region->leaving && !region->connected && process_ended(region))
            region_end(loop->pager, region);
        if (region->leaving)
            reap(loop, region);
        leaving = leaving || (region->in_use && region->leaving);
    }
    return leaving;
}
