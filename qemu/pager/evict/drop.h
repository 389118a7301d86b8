/* SPDX-License-Identifier: MIT */
/* Dropping: pages are collected, and their holes are punched together. Evict thread only. */
#ifndef GHOSTBOX_PAGER_DROP_H
#define GHOSTBOX_PAGER_DROP_H

#include "evict/evict.h"

/* Makes a page DROPPING, which is on no list; the next drop_flush() punches it. With the lock. */
void drop_add(struct evict_loop *loop, uint32_t page);
/* Punches the pages that were added; they are ABSENT then. Without the lock. */
void drop_flush(struct evict_loop *loop);

#endif
