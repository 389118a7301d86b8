/* SPDX-License-Identifier: MIT */
/* Trims slots that were given up, so that they can be used again. Evict thread only. */
#ifndef GHOSTBOX_PAGER_TRIM_H
#define GHOSTBOX_PAGER_TRIM_H

#include "rebuild/rebuild.h"

/* Begins to trim a slot of each donor that has slots given up, can be written to, and has no trim under way. */
void slots_service(struct rebuild *rebuild);

#endif
