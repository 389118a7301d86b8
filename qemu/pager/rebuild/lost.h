/* SPDX-License-Identifier: MIT */
/* Donors whose memory is gone: see lost.c. */
#ifndef GHOSTBOX_PAGER_LOST_H
#define GHOSTBOX_PAGER_LOST_H

#include "rebuild/rebuild.h"

/*
 * Finds donors that count as lost from now on, and handles the pages that only lost donors held. To be called again
 * from rebuild->lost_ns on, also while a copy is filled, which may take hours. Evict thread only.
 */
void lost_service(struct rebuild *rebuild);
/* Returns how many pages of an extent only lost donors hold, without those that are poisoned. In any thread. */
uint64_t lost_pages(struct pager *pager, uint32_t extent);

#endif
