/* SPDX-License-Identifier: MIT */
/* Failover: what happens after a fetch failed: see failover.c. Fault thread, without the pager's lock. */
#ifndef GHOSTBOX_PAGER_FAILOVER_H
#define GHOSTBOX_PAGER_FAILOVER_H

#include "fault/fault.h"

/*
 * Goes on after an answer that is no good: request.error says why. ESTALE: the copy has changed since it was asked.
 * EAGAIN: the copy may have the bytes later.
 */
void fetch_failed(struct fault_loop *loop, struct fetch *fetch);
/* Goes on after the request could not be sent. */
void fetch_unsent(struct fault_loop *loop, struct fetch *fetch);
/* Reports the copies that denied the page as suspects, after another copy has served it. */
void fetch_report(struct fault_loop *loop, const struct fetch *fetch);

#endif
