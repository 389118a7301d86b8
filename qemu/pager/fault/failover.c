/* SPDX-License-Identifier: MIT */
/*
 * Failover: what happens after a fetch failed.
 *
 * For a fault one copy of the page is asked after the other. When all were tried, the fetch waits a little and begins
 * a new round. The page is lost when no copy is left on a donor that may still have it, or when each copy has denied
 * it (by an error, or with other bytes than were written) FETCH_ATTEMPTS times. A donor that is away denies nothing:
 * the fetch waits for it. A copy that missed a write may still have this page as it was written last, which the
 * checksum tells; such copies are asked if no other can be. If readahead fails, its pages become absent again; a
 * reader that waits for one of them faults again.
 */
#include "fault/failover.h"

#include "fault/fetch_slots.h"
#include "fault/hedge.h"
#include "fault/send.h"
#include "fault/settle.h"
#include "log.h"

#include <errno.h>
#include <string.h>

#define RETRY_LOST_NS 1000000000ull

/* Poisons a page whose bytes are gone for good. It must never become a zero page (trap 3). With the lock. */
static void lose_page(struct fault_loop *loop, uint32_t page)
{
    struct pager *pager = loop->pager;
    struct region *region = pager_region_of(pager, page);

    pager->table.counts.present--;
    page_set_state(&pager->table, page, PAGE_POISONED);
    pager->table.pages[page].flags &= (uint8_t) ~(PAGE_F_WANTED | PAGE_F_READAHEAD);
    COUNT(pager->counters.poisoned, 1);
    struct place place = pool_place(&pager->pool, page);
    bool can_poison = pager->features.have[FEATURE_POISON];

    log_error("page %u is lost: donor %s cannot return offset %llu; %s", page, place.donor->uri,
              (unsigned long long)place.offset,
              can_poison ? "access to it is SIGBUS from now on" : "a program that touches it waits for ever");
    if (region && can_poison)
        region_poison(region, page);
}

static bool region_leaves(struct pager *pager, uint32_t page)
{
    pager_lock(pager);
    const struct region *region = pager_region_of(pager, page);
    bool leaves = !region || region->leaving;

    pager_unlock(pager);
    return leaves;
}

static void give_up(struct fault_loop *loop, struct fetch *fetch)
{
    pager_lock(loop->pager);
    for (uint32_t i = 0; i < fetch->n_pages; i++)
        fetch_give_up_page(loop, fetch->page + i);
    pager_unlock(loop->pager);
    fetch_over(loop, fetch);
}

/* Whether only lost donors have copies of the page, in whatever state. */
static bool memory_gone(const struct fault_loop *loop, const struct fetch *fetch)
{
    struct place place;

    return !pool_pick(&loop->pager->pool, fetch->page, CHANNEL_DEMAND, 0, &place) &&
           !fetch_pick_older(loop, fetch, &place);
}

/* Whether the page is lost, at the end of a round: no copy can give it any more. */
static bool is_lost(const struct fault_loop *loop, struct fetch *fetch)
{
    const struct pool *pool = &loop->pager->pool;
    struct place place;

    if (pool_pick(pool, fetch->page, CHANNEL_DEMAND, fetch->denied, &place) || fetch_pick_older(loop, fetch, &place))
        return false;
    return memory_gone(loop, fetch) || ++fetch->attempts >= FETCH_ATTEMPTS;
}

/* Ends a round, when no copy is left to ask. */
static void end_round(struct fault_loop *loop, struct fetch *fetch)
{
    struct pager *pager = loop->pager;
    bool lost = is_lost(loop, fetch);

    fetch->tried = fetch->denied = 0;
    if (!lost) {
        /*
         * The donor may have gone down while more fetches from it were under way than an unreachable donor may have.
         * Those beyond the limit give their slots up, for pages of other donors.
         */
        if (loop->n_demand > fetch_demand_max(loop, fetch->page))
            give_up(loop, fetch);
        else
            fetch_retry_later(loop, fetch, FETCH_RETRY_NS);
        return;
    }
    if (!pager->features.have[FEATURE_POISON] && !memory_gone(loop, fetch)) {
        log_error("page %u cannot be read from donor %s; its reader waits", fetch->page,
                  pool_place(&pager->pool, fetch->page).donor->uri);
        fetch_retry_later(loop, fetch, RETRY_LOST_NS);
        return;
    }
    pager_lock(pager);
    lose_page(loop, fetch->page);
    pager_unlock(pager);
    fetch_over(loop, fetch);
}

static void note_failure(struct fetch *fetch)
{
    const struct place *place = &fetch->place;
    int error = fetch->request.error;
    uint32_t bit = 1u << place->copy;

    if (error == ESTALE) /* the copy has changed; another one may be the best now, or the same once more */
        return;
    if (fetch_asks_older(fetch))
        fetch->older |= error == ENOTCONN ? 0 : bit;
    else
        fetch->tried |= bit;
    if (error == EAGAIN)
        return;
    COUNT(place->donor->counters.errors, 1);
    log_debug("donor %s: read of %u pages at %llu failed: %s", place->donor->uri, fetch->n_pages,
              (unsigned long long)place->offset, strerror(error));
    /* If the connection broke, the donor has answered nothing. */
    if (fetch_asks_older(fetch) || error == ENOTCONN || fetch->request.channel->state != CHANNEL_UP)
        return;
    fetch->denied |= bit;
    fetch->denied_words[place->copy] = place->word;
}

void fetch_failed(struct fault_loop *loop, struct fetch *fetch)
{
    note_failure(fetch);
    if (hedge_leave(loop, fetch))
        return;
    if (!fetch->demand || region_leaves(loop->pager, fetch->page))
        give_up(loop, fetch);
    else if (fetch_send(loop, fetch) < 0)
        end_round(loop, fetch);
}

void fetch_unsent(struct fault_loop *loop, struct fetch *fetch)
{
    if (!fetch->demand || region_leaves(loop->pager, fetch->page))
        give_up(loop, fetch);
    else
        end_round(loop, fetch);
}

void fetch_report(struct fault_loop *loop, const struct fetch *fetch)
{
    for (uint32_t i = 0; i < COPIES_MAX; i++)
        if (fetch->denied >> i & 1)
            pager_suspect(loop->pager, fetch->page, i, fetch->denied_words[i]);
}
