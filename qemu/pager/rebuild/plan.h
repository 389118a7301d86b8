/* SPDX-License-Identifier: MIT */
/* The plan: which copy is to be filled next, and which copies are superfluous: see plan.c. Evict thread only. */
#ifndef GHOSTBOX_PAGER_PLAN_H
#define GHOSTBOX_PAGER_PLAN_H

#include "rebuild/rebuild.h"

/* Drops copies that are superfluous. Returns whether there is a copy to fill, and in *job which. */
bool plan_next(struct rebuild *rebuild, struct fill_job *job);
/* Returns how many of the extents that the last plan_next() found unsettled lack good copies. */
uint32_t plan_left(struct rebuild *rebuild);
/* Whether a donor has room for another copy of the extent. */
bool plan_room(struct rebuild *rebuild, uint32_t extent);
/* Claims a slot for another copy of the extent. Returns false if no donor has room. */
bool plan_empty_copy(struct rebuild *rebuild, uint32_t extent, struct copy *copy);

#endif
