/* SPDX-License-Identifier: MIT */
/* Discards: memory that the guest gives back: see discard.c. Evict thread, without the lock. */
#ifndef GHOSTBOX_PAGER_DISCARD_H
#define GHOSTBOX_PAGER_DISCARD_H

#include "evict/evict.h"

/* Handles DISCARD_BEGIN. */
void discard_begin(struct evict_loop *loop, struct link *link, const struct gb_range_msg *message);
/* Handles DISCARD_END. */
void discard_end(struct evict_loop *loop, struct link *link, const struct gb_range_msg *message);
/* Undoes the discards of a connection that is closed. */
void discard_abandon(struct evict_loop *loop, struct link *link);
/* Goes on with discards that wait for pages in motion, or for writes to be free. Returns whether some still wait. */
bool discard_progress(struct evict_loop *loop);

#endif
