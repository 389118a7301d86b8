/* SPDX-License-Identifier: MIT */
/* The thread that serves a region, with all signals blocked: see serve.c. */
#ifndef GHOSTBOX_SHIM_SERVE_H
#define GHOSTBOX_SHIM_SERVE_H

#include "region.h"

/* Starts the thread. Returns 0 or -errno. */
int serve_start(struct region *region);
/*
 * Tells the pager, if one is connected, that the region is unmapped; otherwise the thread tells the next pager. With
 * the region's lock.
 */
void serve_say_bye(struct region *region);

#endif
