/* SPDX-License-Identifier: MIT */
/*
 * A channel's negotiation with its server, before the channel may ask for pages. The functions run on the channel's
 * thread.
 */
#ifndef GHOSTBOX_PAGER_NEGOTIATE_H
#define GHOSTBOX_PAGER_NEGOTIATE_H

#include "donor/donor.h"
#include "donor/secure.h"

#define NO_MEMORY "no memory for a connection"

/*
 * Writes the URI to which the channel connects: the donor's, with channel->address in place of its host, and for
 * write-back with ?writer if the donor's server knows that. Returns the buffer.
 */
const char *channel_uri(const struct channel *channel, char uri[CHANNEL_URI_BYTES]);
/*
 * Makes what the channel negotiates with: a libnbd handle or, for nbds://, a struct secure, which begins to connect.
 * Returns 0, or -errno with a reason for people in text.
 */
int channel_create(struct channel *channel, char *text, size_t text_bytes);
/* Frees what channel_create() has made, and closes the socket. */
void channel_drop(struct channel *channel);
/* Goes on with a negotiation over TLS. Returns as secure_step(): 0 when the channel may be used. */
int channel_step(struct channel *channel);
/*
 * Connects and negotiates. Waits until the channel may be used, for timeout_ms at most, or for silent_ms if the
 * machine does not answer at all. Returns 0, or -errno with a reason for people in text.
 */
int channel_connect(struct channel *channel, int timeout_ms, int silent_ms, char *text, size_t text_bytes);
/* Returns what the server has said about the export. */
struct export_facts channel_facts(const struct channel *channel);
/* Returns the export's description, malloc'd: "" if the server gives none, NULL if there is no memory. */
char *channel_identity(const struct channel *channel);

#endif
