/* SPDX-License-Identifier: MIT */
/*
 * A thread's own delay: how long it waited for a processor while it measured a donor's latency. On a busy machine an
 * answer may lie in the socket for long before the thread that waits for it runs. The kernel counts this time
 * (run_delay in /proc/thread-self/schedstat, Documentation/scheduler/sched-stats.rst). If the kernel does not, the
 * delay is 0.
 */
#ifndef GHOSTBOX_PAGER_OWN_DELAY_H
#define GHOSTBOX_PAGER_OWN_DELAY_H

#include <stdint.h>

/* Notes the kernel's count for this thread. A thread that calls own_delay_since() calls it now and then. */
void own_delay_mark(void);
/* Returns for how long, in ns, this thread has waited for a processor since the last mark before then_ns. */
uint64_t own_delay_since(uint64_t then_ns);

#endif
