/* SPDX-License-Identifier: MIT */
/* The fault thread: one event loop over all userfaultfds and over all demand and readahead connections. */
#ifndef GHOSTBOX_PAGER_FAULT_LOOP_H
#define GHOSTBOX_PAGER_FAULT_LOOP_H

#include "pager.h"

struct fault_loop;

/*
 * Makes the thread's loop with all memory and descriptors that it will ever need, so that a thread that was started
 * cannot fail for lack of them. Returns 0 or -errno. Main thread.
 */
int fault_create(struct fault_loop **loop, struct pager *pager);
/* Frees the loop, after the thread has ended or if it was never started. NULL is allowed. */
void fault_destroy(struct fault_loop *loop);
/* Runs the thread; the argument is its loop. */
void *fault_thread(void *loop);

#endif
