/* SPDX-License-Identifier: MIT */
/* Zaps: unmap pages in QEMU: see zap.c. Evict thread, without the lock. */
#ifndef GHOSTBOX_PAGER_ZAP_H
#define GHOSTBOX_PAGER_ZAP_H

#include "evict/evict.h"

/* Asks a shim to zap up to n pages from the head of the lists of mapped pages, unless it is zapping already. */
void zap_start(struct evict_loop *loop, uint32_t n);
/* Handles a shim's answer: the pages become inactive. Returns false if the zap that it answers is not under way. */
bool zap_done(struct evict_loop *loop, struct link *link, const struct gb_done *message);
/* Called when no answer will come: the pages become resident again, and dirty, as they may have been written. */
void zap_abandon(struct evict_loop *loop, struct link *link);

#endif
