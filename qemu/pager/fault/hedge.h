/* SPDX-License-Identifier: MIT */
/*
 * Hedging: asks a second copy when the first one takes too long: see hedge.c. Fault thread, without the pager's lock.
 */
#ifndef GHOSTBOX_PAGER_HEDGE_H
#define GHOSTBOX_PAGER_HEDGE_H

#include "fault/fault.h"

/*
 * Chooses the copy to ask: the best one or, if its donor is late, another whose donor is not. False: there is none.
 */
bool hedge_choose(const struct fault_loop *loop, const struct fetch *fetch, struct place *place);
/* Sets when another copy has to be asked as well, after the request was sent. */
void hedge_arm(struct fault_loop *loop, struct fetch *fetch);
/* Asks another copy for each fetch that is due. */
void hedge_due(struct fault_loop *loop);
/* Called when the request of a fetch has ended, with or without an error. */
void hedge_answered(struct fetch *fetch);
/* Called when a fetch has a good answer: its twin, if it has one, is overtaken. */
void hedge_won(struct fault_loop *loop, struct fetch *fetch);
/* Called when a fetch failed: if its twin is under way, the twin goes on alone. Returns false if there is no twin. */
bool hedge_leave(struct fault_loop *loop, struct fetch *fetch);

#endif
