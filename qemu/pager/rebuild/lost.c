/* SPDX-License-Identifier: MIT */
/*
 * Donors whose memory is gone, or that count as lost by --on-donor-loss poison.
 *
 * If only lost donors have CURRENT copies of an extent, a STALE copy is better than none: it becomes CURRENT, and the
 * checksum of each page tells whether the copy missed a write of the page. If there is no STALE copy, the pages are
 * poisoned or, with --lost-pages wait, a thread that touches one waits for ever. Then the extent gets an empty copy
 * on another donor if there is room, so that its pages that are in the cache, or will be written, can be written
 * back.
 */
#include "rebuild/lost.h"

#include "base/clock.h"
#include "log.h"
#include "pool/slots.h"
#include "rebuild/plan.h"

#define LOST_NS 500000000ull

/* Whether all CURRENT copies of the extent are on lost donors; *index is one of them. */
static bool extent_lost(const struct pool *pool, uint32_t extent, uint32_t *index)
{
    bool lost = false;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        struct copy copy = copy_load(&pool->extents[extent], i);

        if (copy.state != COPY_CURRENT)
            continue;
        if (!atomic_load(&pool->donors[copy.donor].lost))
            return false;
        lost = true;
        *index = i;
    }
    return lost;
}

/* Whether some extent has its only CURRENT copy on this donor. */
static bool is_only_holder(const struct pool *pool, uint32_t donor)
{
    for (uint32_t e = 0; e < pool->n_extents; e++) {
        uint32_t n_current = 0;
        bool holds = false;

        for (uint32_t i = 0; i < COPIES_MAX; i++) {
            struct copy copy = copy_load(&pool->extents[e], i);

            n_current += copy.state == COPY_CURRENT;
            holds = holds || (copy.state == COPY_CURRENT && copy.donor == donor);
        }
        if (holds && n_current == 1)
            return true;
    }
    return false;
}

/* Makes a donor count as lost if --on-donor-loss poison asks for that after it was away for --poison-after. */
static void give_up_waiting(struct pager *pager, uint32_t index)
{
    struct donor *donor = &pager->pool.donors[index];
    uint64_t away_ns = atomic_load(&donor->away_since_ns);
    uint64_t limit_ns = (uint64_t)pager->options->poison_after_s * 1000000000u;

    if (pager->options->on_loss != ON_LOSS_POISON || !away_ns || clock_ns() < away_ns + limit_ns ||
        atomic_load(&donor->lost) || atomic_load(&donor->removed) || !is_only_holder(&pager->pool, index))
        return;
    log_error("donor %s: away for %u s and the only one to hold some pages: it counts as lost", donor->uri,
              pager->options->poison_after_s);
    atomic_store(&donor->lost, true);
    pager_wake_fault(pager);
}

static bool holds_lost(const struct donor *donor)
{
    return atomic_load(&donor->lost) && atomic_load(&donor->used_slots) > 0;
}

static bool page_here(const struct page *p)
{
    return p->state == PAGE_RESIDENT || p->state == PAGE_ZAPPING || p->state == PAGE_INACTIVE ||
           p->state == PAGE_WRITEBACK;
}

uint64_t lost_pages(struct pager *pager, uint32_t extent)
{
    uint32_t first = extent * pager->pool.extent_pages, unused;
    uint64_t n = 0;

    if (!extent_lost(&pager->pool, extent, &unused))
        return 0;
    pager_lock(pager);
    for (uint32_t page = first; page < first + pager->pool.extent_pages; page++) {
        const struct page *p = &pager->table.pages[page];

        n += page_on_donor(&pager->table, page) && !page_here(p) && p->state != PAGE_POISONED;
    }
    pager_unlock(pager);
    return n;
}

static void tell_loss(struct rebuild *rebuild, uint32_t index)
{
    struct pager *pager = rebuild->pager;
    struct donor *donor = &pager->pool.donors[index];
    uint64_t n_pages = 0;
    uint32_t copy;

    for (uint32_t e = 0; e < pager->pool.n_extents; e++)
        if (extent_lost(&pager->pool, e, &copy) && copy_load(&pager->pool.extents[e], copy).donor == index)
            n_pages += lost_pages(pager, e);
    atomic_store(&donor->lost_pages, n_pages);
    state_set_donor(&pager->state, index, donor);
    if (n_pages > 0)
        log_error("donor %s: %llu MiB (%llu pages) that only it held are lost: a program that touches them %s",
                  donor->uri, (unsigned long long)(n_pages * PAGE_BYTES + (1 << 19)) >> 20,
                  (unsigned long long)n_pages,
                  pager->features.have[FEATURE_POISON] ? "is killed (SIGBUS)" : "waits for ever");
    else
        log_warning("donor %s: lost; no page is lost with it", donor->uri);
}

/* Poisons a page that only the lost copy held, or makes it dirty if it is here. False: it is in motion, try again. */
static bool settle_page(struct pager *pager, uint32_t page)
{
    struct page_table *table = &pager->table;
    struct page *p = &table->pages[page];

    pager_assert_locked(pager);
    if (p->flags & PAGE_F_IO)
        return false;
    if (!page_on_donor(table, page) || (p->flags & PAGE_F_DIRTY))
        return true;
    switch ((enum page_state)p->state) {
    case PAGE_POISONED:
        return true;
    case PAGE_RESIDENT:
    case PAGE_INACTIVE:
        page_set_dirty(table, page, true);
        return true;
    case PAGE_ABSENT:
        page_set_state(table, page, PAGE_POISONED);
        COUNT(pager->counters.poisoned, 1);
        return true;
    default: /* the page is in motion, and will come to rest */
        return false;
    }
}

/* Puts an empty copy in the place of the lost one, once all pages are settled and a donor has room. */
static void revive(struct rebuild *rebuild, uint32_t extent, uint32_t index)
{
    struct pager *pager = rebuild->pager;
    uint32_t first = extent * pager->pool.extent_pages;
    struct copy lost = copy_load(&pager->pool.extents[extent], index), fresh;
    bool settled = true;

    if (!plan_room(rebuild, extent))
        return;
    pager_lock(pager);
    for (uint32_t page = first; page < first + pager->pool.extent_pages; page++)
        settled = settle_page(pager, page) && settled;
    pager_unlock(pager);
    if (!settled || !plan_empty_copy(rebuild, extent, &fresh))
        return;
    copy_put(&pager->pool.extents[extent], index, fresh);
    slot_give_up(&pager->pool.donors[lost.donor], lost.slot);
}

/*
 * Makes a STALE copy of a lost extent CURRENT, if there is one. Not with --contents keep, where pages that were never
 * written have no checksum.
 */
static void salvage(struct rebuild *rebuild, uint32_t extent)
{
    struct pool *pool = &rebuild->pager->pool;

    for (uint32_t i = 0; i < COPIES_MAX && !rebuild->pager->table.keep; i++) {
        struct copy copy = copy_load(&pool->extents[extent], i);

        if (copy.state != COPY_STALE || donor_gone(&pool->donors[copy.donor]))
            continue;
        copy_trust(&pool->extents[extent], i);
        log_warning("extent %u: its last good copy is lost; an older copy on donor %s is used instead", extent,
                    pool->donors[copy.donor].uri);
        return;
    }
}

/* Breaks off the fill of a lost extent, which has no source any more; the extent is handled after the fill's end. */
static void break_off_fill(struct rebuild *rebuild)
{
    uint32_t unused;

    if (rebuild->filling && extent_lost(&rebuild->pager->pool, rebuild->job.extent, &unused))
        rebuild->failed = true;
}

/* Whether all CURRENT copies of the extent are on lost donors, as extent_lost() says, and no copy is being filled. */
static bool can_be_handled(const struct rebuild *rebuild, uint32_t extent, uint32_t *index)
{
    return !(rebuild->filling && rebuild->job.extent == extent) && extent_lost(&rebuild->pager->pool, extent, index);
}

void lost_service(struct rebuild *rebuild)
{
    struct pager *pager = rebuild->pager;
    bool any = false;
    uint32_t copy;

    rebuild->lost_ns = clock_ns() + LOST_NS;
    for (uint32_t i = 0; i < pager->pool.n_donors; i++) {
        give_up_waiting(pager, i);
        any = any || holds_lost(&pager->pool.donors[i]);
    }
    break_off_fill(rebuild);
    for (uint32_t e = 0; any && e < pager->pool.n_extents; e++)
        if (can_be_handled(rebuild, e, &copy))
            salvage(rebuild, e);
    for (uint32_t i = 0; i < pager->pool.n_donors; i++) {
        bool lost = atomic_load(&pager->pool.donors[i].lost);

        if (lost && !(rebuild->lost_seen >> i & 1))
            tell_loss(rebuild, i);
        rebuild->lost_seen |= (uint64_t)lost << i;
    }
    for (uint32_t e = 0; any && e < pager->pool.n_extents; e++)
        if (can_be_handled(rebuild, e, &copy))
            revive(rebuild, e, copy);
}
