/* SPDX-License-Identifier: MIT */
/* Serves faults. Fault thread, without the pager's lock. */
#ifndef GHOSTBOX_PAGER_SERVE_H
#define GHOSTBOX_PAGER_SERVE_H

#include "fault/fault.h"

/* Reads and serves the faults of this region that have come. Returns whether there was any. */
bool fault_serve_region(struct fault_loop *loop, struct region *region);
/* Tries once more to bring in the pages on the waiting list, which wait for a frame, a slot or a donor. */
void fault_serve_waiting(struct fault_loop *loop);

#endif
