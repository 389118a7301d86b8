/* SPDX-License-Identifier: MIT */
/* Reaping: regions whose process has ended give their pages up, here and on the donors. Evict thread only. */
#ifndef GHOSTBOX_PAGER_REAP_H
#define GHOSTBOX_PAGER_REAP_H

#include "evict/evict.h"

/*
 * Ends regions whose process has ended, and goes on with those that are leaving. Returns whether one still is.
 * Without the lock.
 */
bool regions_reap(struct evict_loop *loop);

#endif
