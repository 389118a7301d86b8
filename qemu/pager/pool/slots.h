/* SPDX-License-Identifier: MIT */
/*
 * Slots of donors: a slot is claimed for a copy, and given up with it. The next copy in the slot must not show what
 * the slot held before, so the slot is trimmed in between, after all writes to it have ended (copies.h, rule 5).
 * Evict thread only.
 */
#ifndef GHOSTBOX_PAGER_SLOTS_H
#define GHOSTBOX_PAGER_SLOTS_H

#include "pool/pool.h"

/* Returns how many slots of the donor are free. */
uint32_t slots_free(const struct donor *donor);
/* Takes a free slot. Returns false if there is none, or the donor was removed. */
bool slot_claim(struct donor *donor, uint32_t *slot);
/* Gives a slot up: it has to be trimmed before it is used again. */
void slot_give_up(struct donor *donor, uint32_t slot);
/* Makes a slot free that was given up, after it was trimmed. */
void slot_freed(struct donor *donor, uint32_t slot);
/* Removes a copy from its extent and gives its slot up. */
void copy_drop(struct pool *pool, uint32_t extent, uint32_t copy);

#endif
