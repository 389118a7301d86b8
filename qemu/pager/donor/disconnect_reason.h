/* SPDX-License-Identifier: MIT */
/*
 * The disconnect reason: why a donor is away, in words for people. It is logged once whenever it changes, and kept
 * for `status`. A donor has several connections, which are tried again four times a second and may fail for different
 * reasons.
 */
#ifndef GHOSTBOX_PAGER_DISCONNECT_REASON_H
#define GHOSTBOX_PAGER_DISCONNECT_REASON_H

#include "donor/donor.h"

/* Writes a message, which may be one of libnbd's, without the parts that help no reader. In any thread. */
void reason_make_plain(const char *why, char text[REASON_BYTES]);
/* Keeps, and may log, why an attempt to connect failed. `why` may be a message of libnbd. On the channel's thread. */
void reason_note(struct channel *channel, const char *why);
/* Keeps why a connection broke that was up; the caller has logged the reason. On the channel's thread. */
void reason_note_said(struct channel *channel, const char *why);
/* Called when the channel is up: its next failure is logged, whatever the reason. On the channel's thread. */
void reason_clear(struct channel *channel);
/* Copies the donor's latest reason; "" if there was none. In any thread. */
void reason_get(const struct donor *donor, char text[REASON_BYTES]);

#endif
