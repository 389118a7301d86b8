/* SPDX-License-Identifier: MIT */
/* How a donor comes into use, and how it ends. */
#ifndef GHOSTBOX_PAGER_DONOR_OPEN_H
#define GHOSTBOX_PAGER_DONOR_OPEN_H

#include "donor/donor.h"

/*
 * Connects all channels, one after the other, and waits for each. The caller has set libnbd_only. Returns 0, or
 * -errno with an error for people in text; then the caller calls donor_close() all the same.
 */
int donor_open(struct donor *donor, const char *uri, char *text, size_t text_bytes);
/*
 * Takes over a donor of an earlier pager. The caller has set uri, identity, host, export_bytes, flags and can_trim.
 * The channels are down; the loops connect them (channel_revive()).
 */
void donor_inherit(struct donor *donor);
/* Closes all connections and frees what the donor owns. No other thread may use it any more. */
void donor_close(struct donor *donor);

#endif
