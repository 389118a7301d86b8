/* SPDX-License-Identifier: MIT */
/* Whether a server that answers again still holds the pages that were written to it: donor.h has the rules. */
#ifndef GHOSTBOX_PAGER_RECOGNISE_H
#define GHOSTBOX_PAGER_RECOGNISE_H

#include "donor/donor.h"

enum memory { MEMORY_OURS, MEMORY_GONE, MEMORY_OF_OTHERS };

/*
 * Called on the channel's thread after a negotiation. Finds out whether the server still holds our pages. For
 * MEMORY_OF_OTHERS it writes the reason for people to `why`; MEMORY_GONE it logs.
 */
enum memory channel_memory(const struct channel *channel, char why[REASON_BYTES]);

#endif
