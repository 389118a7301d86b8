/* SPDX-License-Identifier: MIT */
/* Which copy a fetch asks. Fault thread, without the pager's lock. */
#ifndef GHOSTBOX_PAGER_SEND_H
#define GHOSTBOX_PAGER_SEND_H

#include "fault/fault.h"

/* Asks the best copy that was not tried. Returns 0, or -errno if there is none, or none is connected. */
int fetch_send(struct fault_loop *loop, struct fetch *fetch);
/*
 * Finds a FILLING or STALE copy of a fault's page that may have the page's bytes all the same, for when no better
 * copy can be asked. Returns false if there is none, or the page has no checksum.
 */
bool fetch_pick_older(const struct fault_loop *loop, const struct fetch *fetch, struct place *place);
/* Whether the copy that was asked was not CURRENT then. */
static inline bool fetch_asks_older(const struct fetch *fetch)
{
    return copy_of_word(fetch->place.word).state != COPY_CURRENT;
}

#endif
