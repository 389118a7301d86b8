/* SPDX-License-Identifier: MIT */
/*
 * A donor's latency: how long its demand reads, and the heartbeats on their connection, take, less the time for which
 * the fault thread itself waited for a processor (own_delay.h). Fault thread only.
 */
#ifndef GHOSTBOX_PAGER_LATENCY_H
#define GHOSTBOX_PAGER_LATENCY_H

#include "donor/donor.h"

/*
 * Counts an answer, now or a while after it came: its request was sent at began_ns, and the answer took took_ns. An
 * answer that took longer than slow_ns is a slow one, and may make the donor slow.
 */
void latency_sample(struct donor *donor, uint64_t began_ns, uint64_t took_ns, uint64_t slow_ns);
/* Called at each look: lets older answers count for less, and finds out whether a slow donor is slow still. */
void latency_decay(struct donor *donor, uint64_t now_ns, uint64_t slow_ns);

#endif
