/* SPDX-License-Identifier: MIT */
/* Discards: holes in the remote memory, in agreement with the pager: see discard.c. */
#ifndef GHOSTBOX_SHIM_DISCARD_H
#define GHOSTBOX_SHIM_DISCARD_H

#include "region.h"

/*
 * Punches a range of the memfd as fallocate(FALLOC_FL_PUNCH_HOLE) does, in agreement with the pager. Waits for the
 * pager. Returns 0, or -1 with errno. On QEMU's calling thread, with the region taken.
 */
int region_discard(struct region *region, uint64_t memfd_offset, uint64_t length);

#endif
