/* SPDX-License-Identifier: MIT */
/*
 * Hedging: a second copy is asked when the first one takes too long.
 *
 * When a fetch has had no answer for longer than 99 of 100 of its donor's answers took, the next best copy is asked
 * as well. The donor then counts as late until its own answer has come, or its connection is broken: other copies are
 * asked before it, and no hedge goes to it. So a donor that stops answering costs each of its readers this delay
 * once, and few slots.
 */
#include "fault/hedge.h"

#include "donor/channel.h"
#include "fault/fetch_slots.h"

#include <errno.h>

#define HEDGE_MIN_NS 500000u
/* A window takes longer than a page, and its answers may wait on the done list: fetch_held_back(). */
#define HEDGE_READAHEAD_MIN_NS 20000000u
#define HEDGE_READAHEAD_FACTOR 8u
/* How long until a hedge is tried again for which no slot was free. */
#define HEDGE_AGAIN_NS 1000000u

static enum channel_class class_of(const struct fetch *fetch)
{
    return fetch->demand ? CHANNEL_DEMAND : CHANNEL_READAHEAD;
}

/* Chooses another copy than `first`, whose donor is connected and not late. Returns false if there is none. */
static bool choose_other(const struct fault_loop *loop, const struct fetch *fetch, const struct place *first,
                         struct place *other)
{
    enum channel_class class = class_of(fetch);

    return pool_pick(&loop->pager->pool, fetch->page, class, fetch->tried | 1u << first->copy, other) &&
           other->donor->channels[class].state == CHANNEL_UP && other->donor->estimate.n_late == 0;
}

bool hedge_choose(const struct fault_loop *loop, const struct fetch *fetch, struct place *place)
{
    struct place other;

    if (!pool_pick(&loop->pager->pool, fetch->page, class_of(fetch), fetch->tried, place))
        return false;
    if (place->donor->estimate.n_late > 0 && choose_other(loop, fetch, place, &other))
        *place = other;
    return true;
}

static uint64_t delay_ns(const struct fetch *fetch)
{
    uint64_t p99_ns = fetch->place.donor->estimate.p99_ns;

    if (fetch->demand)
        return p99_ns > HEDGE_MIN_NS ? p99_ns : HEDGE_MIN_NS;
    p99_ns *= HEDGE_READAHEAD_FACTOR;
    return p99_ns > HEDGE_READAHEAD_MIN_NS ? p99_ns : HEDGE_READAHEAD_MIN_NS;
}

static void due_at(struct fault_loop *loop, struct fetch *fetch, uint64_t when_ns)
{
    fetch->hedge_ns = when_ns;
    if (!loop->hedge_ns || when_ns < loop->hedge_ns)
        loop->hedge_ns = when_ns;
}

void hedge_arm(struct fault_loop *loop, struct fetch *fetch)
{
    struct place other;

    if (loop->pager->pool.n_donors > 1 && choose_other(loop, fetch, &fetch->place, &other))
        due_at(loop, fetch, fetch->request.started_ns + delay_ns(fetch));
}

static void overtake(struct fault_loop *loop, struct fetch *fetch, uint64_t now_ns)
{
    struct place other;

    fetch->hedge_ns = 0;
    if (!choose_other(loop, fetch, &fetch->place, &other))
        return;
    struct fetch *twin = fetch_slot(loop, fetch->demand);

    if (!twin) {
        due_at(loop, fetch, now_ns + HEDGE_AGAIN_NS);
        return;
    }
    twin->page = fetch->page;
    twin->n_pages = fetch->n_pages;
    twin->attempts = fetch->attempts;
    twin->fault_ns = fetch->fault_ns;
    twin->of_stream = fetch->of_stream;
    twin->place = other;
    if (channel_read(&other.donor->channels[class_of(fetch)], &twin->request, twin->buf, twin->n_pages * PAGE_BYTES,
                     other.offset) < 0) {
        fetch_slot_give(loop, twin);
        return;
    }
    twin->is_hedge = true;
    twin->twin = fetch;
    fetch->twin = twin;
    fetch->late = true;
    fetch->place.donor->estimate.n_late++;
    COUNT(loop->pager->counters.hedges_sent, 1);
}

static void look_at(struct fault_loop *loop, struct fetch *fetches, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        struct fetch *fetch = &fetches[i];

        if (!fetch->hedge_ns || fetch->request.done_ns)
            continue;
        if (fetch->hedge_ns <= loop->spun_ns)
            overtake(loop, fetch, loop->spun_ns);
        else
            due_at(loop, fetch, fetch->hedge_ns);
    }
}

void hedge_due(struct fault_loop *loop)
{
    loop->hedge_ns = 0;
    look_at(loop, loop->demand, DEMAND_SLOTS);
    look_at(loop, loop->readahead, READAHEAD_SLOTS);
}

void hedge_answered(struct fetch *fetch)
{
    fetch->hedge_ns = 0;
    if (!fetch->late)
        return;
    fetch->late = false;
    fetch->request.channel->donor->estimate.n_late--;
}

void hedge_won(struct fault_loop *loop, struct fetch *fetch)
{
    struct fetch *twin = fetch->twin;

    if (!twin)
        return;
    if (fetch->is_hedge)
        COUNT(loop->pager->counters.hedges_won, 1);
    twin->overtaken = true;
    twin->twin = fetch->twin = NULL;
}

bool hedge_leave(struct fault_loop *loop, struct fetch *fetch)
{
    struct fetch *twin = fetch->twin;

    if (!twin)
        return false;
    twin->tried |= fetch->tried;
    twin->denied |= fetch->denied;
    for (uint32_t i = 0; i < COPIES_MAX; i++)
        if (fetch->denied >> i & 1)
            twin->denied_words[i] = fetch->denied_words[i];
    twin->twin = NULL;
    twin->is_hedge = false;
    fetch_slot_give(loop, fetch);
    return true;
}
