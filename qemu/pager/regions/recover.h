/* SPDX-License-Identifier: MIT */
/* Recovery: going on with the page table of an earlier pager: see recover.c. */
#ifndef GHOSTBOX_PAGER_RECOVER_H
#define GHOSTBOX_PAGER_RECOVER_H

#include "pager.h"

/*
 * Takes over the regions of an earlier pager from the state file; they wait until their processes connect again.
 * Before the threads start.
 */
void recover_regions(struct pager *pager);
/*
 * Called when the process of an awaited region has connected again and the region has its descriptors. Gives each
 * page a state that is true, and wakes all waiting threads, so that faults that the earlier pager had read are raised
 * again. Evict thread, without the lock.
 */
void recover_region(struct pager *pager, struct region *region);
/*
 * Called when the process of an awaited region has ended: its pages become absent, and the region is leaving, as one
 * that was served by this pager. Without the lock.
 */
void recover_forget(struct pager *pager, struct region *region);

#endif
