/* SPDX-License-Identifier: MIT */
/* Replaces the state file by a copy of itself: if it was removed, or to leave removed donors out. */
#ifndef GHOSTBOX_PAGER_STATE_ANEW_H
#define GHOSTBOX_PAGER_STATE_ANEW_H

#include "pool/state.h"

/*
 * Makes the file anew if its path does not lead to it any more, and goes on in the new one; *made says whether it
 * did. With the pager's lock, on the evict thread, which alone changes extents and regions, so that nothing in the
 * file changes meanwhile. Returns 0, or -errno with an error for people in text: then the pager goes on with the old
 * file, which has no name.
 */
int state_restore(struct state *state, struct pool *pool, bool *made, char *text, size_t text_bytes);

/*
 * Leaves out the removed donors that hold no copies if all places for donors in the file are taken. Called before any
 * thread knows donors by their numbers. The file is replaced by one rename(), so that a crash leaves a whole file. A
 * failure is logged and changes nothing.
 */
void state_forget_removed(struct state *state);

#endif
