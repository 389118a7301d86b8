/* SPDX-License-Identifier: MIT */
/*
 * Slots of donors: taken for copies, given up with them. What a slot held must not come to light in the copy that
 * takes it next, so it is trimmed in between, and that not before all writes to it have ended (pool.h, rule 5).
 */
#include "evict.h"
#include "fault_points.h"
#include "log.h"

#include <errno.h>

#define TRIM_MAX_BYTES (256ull << 20)

uint32_t slots_free(const struct donor *donor)
{
    return donor->n_slots - atomic_load(&donor->used_slots) - donor->n_given_up;
}

bool slot_claim(struct donor *donor, uint32_t *slot)
{
    for (*slot = 0; *slot < donor->n_slots; (*slot)++) {
        if (donor->slots[*slot] != SLOT_FREE)
            continue;
        donor->slots[*slot] = SLOT_USED;
        atomic_fetch_add(&donor->used_slots, 1);
        if (!atomic_load(&donor->removed))
            return true;
        /* Removed in this very moment: whoever does that looks at used_slots after it said so. */
        donor->slots[*slot] = SLOT_FREE;
        atomic_fetch_sub(&donor->used_slots, 1);
        return false;
    }
    return false;
}

void slot_give_up(struct donor *donor, uint32_t slot)
{
    donor->slots[slot] = SLOT_GIVEN_UP;
    atomic_fetch_add(&donor->n_given_up, 1); /* first: nobody may find it holding nothing in between */
    atomic_fetch_sub(&donor->used_slots, 1);
}

void copy_drop(struct evict_loop *loop, uint32_t extent, uint32_t copy)
{
    struct pool *pool = &loop->pager->pool;
    struct copy was = copy_load(&pool->extents[extent], copy);

    copy_store(&pool->extents[extent], copy, (struct copy){.state = COPY_NONE});
    slot_give_up(&pool->donors[was.donor], was.slot);
    FAULT_POINT(rebuild_dropped);
}

static void slot_freed(struct donor *donor, uint32_t slot)
{
    donor->slots[slot] = SLOT_FREE;
    atomic_fetch_sub(&donor->n_given_up, 1);
}

/* Sends the next piece. Returns 0 or -errno. */
static int trim_send(struct evict_loop *loop, struct donor *donor, struct slot_trim *trim)
{
    uint64_t extent_bytes = loop->pager->pool.extent_bytes, left = extent_bytes - trim->at;
    uint32_t bytes = (uint32_t)(left < TRIM_MAX_BYTES ? left : TRIM_MAX_BYTES);
    int rc = channel_trim(&donor->channels[CHANNEL_WRITEBACK], &trim->request, bytes,
                          trim->slot * extent_bytes + trim->at);

    trim->busy = rc == 0;
    return rc;
}

static void trim_next(struct evict_loop *loop, uint32_t index)
{
    struct donor *donor = &loop->pager->pool.donors[index];
    struct slot_trim *trim = &loop->rebuild.trims[index];
    uint32_t slot = 0;

    while (slot < donor->n_slots && donor->slots[slot] != SLOT_GIVEN_UP)
        slot++;
    if (slot == donor->n_slots || writeback_touches(loop, index, slot))
        return;
    *trim = (struct slot_trim){.slot = slot};
    int rc = trim_send(loop, donor, trim);

    if (rc == 0)
        donor->slots[slot] = SLOT_TRIMMING;
    else if (rc == -EOPNOTSUPP) /* it keeps what is never read: checksums tell */
        slot_freed(donor, slot);
}

void slots_mind(struct evict_loop *loop)
{
    struct pool *pool = &loop->pager->pool;

    for (uint32_t i = 0; i < pool->n_donors; i++)
        if (pool->donors[i].n_given_up > 0 && !loop->rebuild.trims[i].busy && donor_reachable(&pool->donors[i]))
            trim_next(loop, i);
}

void slot_trim_done(struct evict_loop *loop, struct slot_trim *trim)
{
    struct donor *donor = &loop->pager->pool.donors[trim - loop->rebuild.trims];

    trim->busy = false;
    if (trim->request.error) {
        log_debug("donor %s: trim failed", donor->uri);
        donor->slots[trim->slot] = SLOT_GIVEN_UP;
        return;
    }
    COUNT(donor->counters.trims, 1);
    COUNT(donor->counters.trimmed_bytes, trim->request.bytes);
    trim->at += trim->request.bytes;
    if (trim->at < loop->pager->pool.extent_bytes && trim_send(loop, donor, trim) == 0)
        return;
    FAULT_POINT(rebuild_trimmed);
    if (trim->at < loop->pager->pool.extent_bytes)
        donor->slots[trim->slot] = SLOT_GIVEN_UP;
    else
        slot_freed(donor, trim->slot);
    loop->rebuild.asked = true;
}
