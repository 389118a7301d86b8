/* SPDX-License-Identifier: MIT */
/*
 * Which donors take writes now.
 *
 * A donor that is silent, away, or answers with errors must not hold up the write-back to other donors. So its dirty
 * pages are passed over when victims are chosen; and until its silence is noticed, writes under way to it take no
 * more than a share of the stages.
 *
 * Dirty pages that no donor takes stay, and in the end may fill the cache. Then a few pages more than --cache allows
 * may come in (the reserve), so that pages of other donors can still be used, one after the other. New pages that
 * could not be written either may not use the reserve. The cache then holds the pages that the guest had dirtied of
 * the donors that went.
 */
#include "evict/takes.h"

#include "base/clock.h"
#include "log.h"

#define PAUSE_NS 100000000ull
/* If there is more than one donor, a donor may use one SHAREth of the stages. */
#define SHARE 2u
/* The reserve is one RESERVE_SHAREth of the cache, and at least RESERVE_PAGES. */
#define RESERVE_SHARE 8
#define RESERVE_PAGES 256

static uint32_t donors_in_use(const struct pool *pool)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < pool->n_donors; i++)
        n += !donor_gone(&pool->donors[i]) && !pool->donors[i].backup;
    return n;
}

static bool is_full(const struct evict_loop *loop, uint32_t donor)
{
    return loop->n_flying[donor] >= STAGES / SHARE && donors_in_use(&loop->pager->pool) > 1;
}

static bool is_reachable(const struct evict_loop *loop, uint32_t index)
{
    const struct donor *donor = &loop->pager->pool.donors[index];

    return !donor_gone(donor) && donor->channels[CHANNEL_WRITEBACK].state == CHANNEL_UP &&
           loop->now_ns >= loop->paused_ns[index];
}

bool takes_page(const struct evict_loop *loop, uint32_t page)
{
    const struct pool *pool = &loop->pager->pool;
    const struct extent *extent = &pool->extents[page / pool->extent_pages];
    bool any = false;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        struct copy copy = copy_load(extent, i);

        if ((copy.state != COPY_CURRENT && copy.state != COPY_FILLING) || !is_reachable(loop, copy.donor))
            continue;
        if (is_full(loop, copy.donor) && !pool->donors[copy.donor].backup)
            return false;
        any = true;
    }
    return any;
}

void takes_pause(struct evict_loop *loop, uint32_t page)
{
    const struct pool *pool = &loop->pager->pool;
    const struct extent *extent = &pool->extents[page / pool->extent_pages];

    loop->writeback_pause_ns = clock_ns() + PAUSE_NS;
    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        struct copy copy = copy_load(extent, i);

        if (copy.state == COPY_CURRENT || copy.state == COPY_FILLING)
            loop->paused_ns[copy.donor] = loop->writeback_pause_ns;
    }
}

/* Whether any donor, backups left out, takes writes: its pages could leave. */
static bool any_reachable(const struct evict_loop *loop)
{
    bool any = false;

    for (uint32_t i = 0; i < loop->pager->pool.n_donors; i++)
        any = any || (is_reachable(loop, i) && !loop->pager->pool.donors[i].backup);
    return any;
}

static void grant_reserve(struct pager *pager)
{
    int64_t pages = pager->cache_pages / RESERVE_SHARE;

    pager_assert_locked(pager);
    pages = pages > RESERVE_PAGES ? pages : RESERVE_PAGES;
    if (pager->reserve_pages == 0)
        log_warning("all cached pages are dirty, and their donors take no writes: up to %lld pages more than --cache "
                    "allows may come in",
                    (long long)pages);
    pager->reserve_pages = pages;
    pager_wake_fault(pager);
}

void takes_turn(struct evict_loop *loop)
{
    struct pager *pager = loop->pager;

    loop->now_ns = clock_ns();
    pager_lock(pager);
    bool over = pager->reserve_pages > 0;

    for (uint32_t i = 0; i < pager->pool.n_donors && over; i++)
        over = atomic_load(&pager->pool.donors[i].removed) || is_reachable(loop, i);
    if (over)
        pager->reserve_pages = 0;
    pager_unlock(pager);
}

bool takes_look_on(struct evict_loop *loop, uint32_t n_found, uint32_t n_stuck)
{
    struct pager *pager = loop->pager;
    uint32_t n_inactive = pager->table.inactive.count + pager->table.spent.count;

    pager_assert_locked(pager);
    loop->n_stuck = n_found > 0 ? 0 : loop->n_stuck + n_stuck;
    loop->n_free = n_stuck > 0 ? 0 : loop->n_free + n_found;
    if (pager->reserve_pages > 0 && loop->n_free > n_inactive)
        pager->reserve_pages = 0;
    if (n_found > 0 || n_stuck == 0)
        return false;
    if (loop->n_stuck < n_inactive)
        return true;
    loop->n_stuck = 0;
    if (any_reachable(loop) && pager->table.counts.writeback == 0 && pager_free_pages(pager) < pager->watermarks.low)
        grant_reserve(pager);
    return false;
}
