/* SPDX-License-Identifier: MIT */
/*
 * How long this thread itself was kept from running, while it measured others: on a busy machine an answer may lie in
 * the socket for long before the thread that waits for it gets a processor. The kernel counts that (run_delay in
 * /proc/thread-self/schedstat, Documentation/scheduler/sched-stats.rst). Where it does not, the delay is 0.
 */
#ifndef GHOSTBOX_PAGER_OWN_DELAY_H
#define GHOSTBOX_PAGER_OWN_DELAY_H

#include <stdint.h>

/* Notes how it stands; to be called now and then by the thread that asks below. Costs a system call. */
void own_delay_mark(void);
/* For how long this thread waited for a processor since this moment, or a little before. */
uint64_t own_delay_since(uint64_t then_ns);

#endif
