/* SPDX-License-Identifier: MIT */
/*
 * Why a donor is away, for people: said once in the log whenever it changes, and kept for `status`. A donor has
 * several connections, which are tried again four times a second, and may fail for different reasons.
 */
#ifndef GHOSTBOX_PAGER_CAUSE_H
#define GHOSTBOX_PAGER_CAUSE_H

#include <stddef.h>

#define CAUSE_BYTES 160

struct channel;
struct donor;

/* What a reader wants to know of a message, which may be one of libnbd's. */
void cause_make_plain(const char *why, char text[CAUSE_BYTES]);
/* An attempt to connect failed. On the channel's thread; `why` may be a message of libnbd's. */
void cause_note(struct channel *channel, const char *why);
/* The connection of a channel that was up broke: the log says so already. */
void cause_note_said(struct channel *channel, const char *why);
/* The channel is up: the next failure is news, whatever its cause. */
void cause_clear(struct channel *channel);
/* The latest one, in any thread; "" if there was none. */
void cause_get(const struct donor *donor, char text[CAUSE_BYTES]);

#endif
