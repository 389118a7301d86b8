/* SPDX-License-Identifier: MIT */
/* Fills one copy at a time from another: see fill.c. Evict thread only. */
#ifndef GHOSTBOX_PAGER_FILL_H
#define GHOSTBOX_PAGER_FILL_H

#include "rebuild/rebuild.h"

/* Returns 0 or -errno. */
int fill_init(struct rebuild *rebuild);
void fill_destroy(struct rebuild *rebuild);
/* Begins to fill the copy of a job. */
void fill_start(struct rebuild *rebuild, const struct fill_job *job);
/* Goes on with the fill. Returns after how many milliseconds to call again at the latest; -1: at the next event. */
int fill_turn(struct rebuild *rebuild);
/* Makes a copy STALE that missed a write or is bad, if it is still the copy of that word: copy_missed(). */
void rebuild_copy_missed(struct rebuild *rebuild, uint32_t extent, uint32_t copy, uint64_t word);
/* Has suspects (copies that gave other bytes than were written to them) filled anew. */
void fill_take_suspects(struct rebuild *rebuild);

#endif
