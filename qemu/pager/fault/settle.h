/* SPDX-License-Identifier: MIT */
/* Sets the state of a page after a fault on it was served, or could not be. Fault thread, with the pager's lock. */
#ifndef GHOSTBOX_PAGER_SETTLE_H
#define GHOSTBOX_PAGER_SETTLE_H

#include "fault/fault.h"

/* Puts the page on the waiting list. If retry_after_ns is not 0, the list is looked at again after that time. */
void fault_make_wait(struct fault_loop *loop, uint32_t page, uint64_t retry_after_ns);
/* Makes the page RESIDENT, after it was mapped. */
void fault_installed(struct fault_loop *loop, uint32_t page);
/* Makes a page ABSENT again that could not be fetched; if a fault waits for it, it goes to the waiting list. */
void fetch_give_up_page(struct fault_loop *loop, uint32_t page);

#endif
