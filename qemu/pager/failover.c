/* SPDX-License-Identifier: MIT */
/*
 * What becomes of a read that failed.
 *
 * A fault's page is asked of one copy after the other. When all of them were tried it waits a little and is asked for
 * anew; it is lost when there is no copy left on a donor that may still have it, or when every copy has denied it
 * (answered with an error, or with bytes that are not its own) FETCH_ATTEMPTS times. A donor that is away denies
 * nothing: it is waited for. A copy that missed a write may hold this page as it was last written nevertheless, and
 * its checksum tells: such copies are asked where no other one can be. What was read ahead is simply given up;
 * whoever waits for it faults for it.
 */
#include "fault.h"

#include "clock.h"
#include "log.h"

#include <errno.h>
#include <string.h>

#define RETRY_NS      10000000ull
#define RETRY_LOST_NS 1000000000ull

/* A fetch that failed for good: the page's bytes are gone. Never a zero page (trap 3). */
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
              can_poison ? "access to it is SIGBUS from now on" : "who touches it waits for ever");
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

static bool has_checksum(struct pager *pager, uint32_t page)
{
    pager_lock(pager);
    bool has = pager->table.pages[page].flags & PAGE_F_SUM;

    pager_unlock(pager);
    return has;
}

bool fetch_pick_older(const struct fault_loop *loop, const struct fetch *fetch, struct place *place)
{
    const struct pool *pool = &loop->pager->pool;
    const struct extent *extent = &pool->extents[fetch->page / pool->extent_pages];
    bool found = false;

    if (!fetch->demand || !has_checksum(loop->pager, fetch->page))
        return false;
    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        uint64_t word = copy_word(extent, i);
        struct copy copy = copy_of_word(word);

        if ((copy.state != COPY_STALE && copy.state != COPY_FILLING) || (fetch->older >> i & 1) ||
            donor_gone(&pool->donors[copy.donor]))
            continue;
        /* One that can answer rather than another. */
        if (found && pool->donors[copy.donor].channels[CHANNEL_DEMAND].state != CHANNEL_UP)
            continue;
        *place = pool_place_of(pool, fetch->page, i, word);
        found = true;
    }
    return found;
}

/* No donor that is not lost holds the page, in whatever state. */
static bool memory_gone(const struct fault_loop *loop, const struct fetch *fetch)
{
    struct place place;

    return !pool_pick(&loop->pager->pool, fetch->page, CHANNEL_DEMAND, 0, &place) &&
           !fetch_pick_older(loop, fetch, &place);
}

/* After a round: whether no copy can give the page any more. */
static bool is_lost(const struct fault_loop *loop, struct fetch *fetch)
{
    const struct pool *pool = &loop->pager->pool;
    struct place place;

    if (pool_pick(pool, fetch->page, CHANNEL_DEMAND, fetch->denied, &place) || fetch_pick_older(loop, fetch, &place))
        return false;
    return memory_gone(loop, fetch) || ++fetch->attempts >= FETCH_ATTEMPTS;
}

/* No copy is left to ask now. */
static void end_round(struct fault_loop *loop, struct fetch *fetch)
{
    struct pager *pager = loop->pager;
    bool lost = is_lost(loop, fetch);

    fetch->tried = fetch->denied = 0;
    if (!lost) {
        fetch_retry_later(loop, fetch, RETRY_NS);
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

    if (error == ESTALE) /* another copy may have become the best one */
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
    /* A connection that broke has answered nothing. */
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
