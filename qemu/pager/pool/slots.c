/* SPDX-License-Identifier: MIT */
#include "pool/slots.h"

#include "base/fault_points.h"

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
        /*
         * The donor was removed at this moment, so the slot is given back. The command that removes donors sets
         * `removed` first and reads used_slots after that, so one of the two threads sees the other.
         */
        donor->slots[*slot] = SLOT_FREE;
        atomic_fetch_sub(&donor->used_slots, 1);
        return false;
    }
    return false;
}

void slot_give_up(struct donor *donor, uint32_t slot)
{
    donor->slots[slot] = SLOT_GIVEN_UP;
    atomic_fetch_add(&donor->n_given_up, 1); /* before used_slots falls: the donor must never seem to be empty */
    atomic_fetch_sub(&donor->used_slots, 1);
}

void slot_freed(struct donor *donor, uint32_t slot)
{
    donor->slots[slot] = SLOT_FREE;
    atomic_fetch_sub(&donor->n_given_up, 1);
}

void copy_drop(struct pool *pool, uint32_t extent, uint32_t copy)
{
    struct copy was = copy_load(&pool->extents[extent], copy);

    copy_remove(&pool->extents[extent], copy);
    slot_give_up(&pool->donors[was.donor], was.slot);
    FAULT_POINT(rebuild_dropped);
}
