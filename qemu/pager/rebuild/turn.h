/* SPDX-License-Identifier: MIT */
/* The rebuild's part of each turn of the evict loop. Evict thread only. */
#ifndef GHOSTBOX_PAGER_TURN_H
#define GHOSTBOX_PAGER_TURN_H

#include "rebuild/rebuild.h"

/* The caller has set pager, writes_touch and writes. Returns 0 or -errno. */
int rebuild_init(struct rebuild *rebuild);
void rebuild_destroy(struct rebuild *rebuild);
/*
 * Goes on with the rebuild. Returns after how many milliseconds to call again at the latest; -1: at the next event.
 */
int rebuild_turn(struct rebuild *rebuild);

#endif
