/* SPDX-License-Identifier: MIT */
/* The evict thread: eviction, shims, discards and the rebuild. */
#ifndef GHOSTBOX_PAGER_EVICT_LOOP_H
#define GHOSTBOX_PAGER_EVICT_LOOP_H

#include "link/link.h"
#include "pager.h"

struct evict_loop;

/*
 * Makes the thread's loop with all memory and descriptors that it will ever need, so that a thread that was started
 * cannot fail for lack of them. The handler handles the messages of shims. Returns 0 or -errno. Main thread.
 */
int evict_create(struct evict_loop **loop, struct pager *pager, const struct link_handler *handler);
/* Frees the loop, after the thread has ended or if it was never started. NULL is allowed. */
void evict_destroy(struct evict_loop *loop);
/* Runs the thread; the argument is its loop. */
void *evict_thread(void *loop);

#endif
