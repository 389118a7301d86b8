/* SPDX-License-Identifier: MIT */
/*
 * Liveness: whether a donor is alive. patience.h has the figures.
 *
 * Every LOOK_NS the channel's thread looks at each channel. If no request is under way, it sends a heartbeat, which
 * reads a page. If requests were under way at `patience` looks in a row and no byte came meanwhile, it breaks the
 * connection, which is then made anew. With the patience at its least, a donor that died is noticed within 4 ×
 * LOOK_NS. Looks are counted, not time, so that a pager that was stopped for a while breaks no connection.
 *
 * A donor may be slow and not dead. Each time that a connection is broken for lack of an answer, the patience
 * doubles, so that even the slowest donor answers in the end. While the donor answers, the patience is twice the time
 * of its longest answer; it goes down by half at most from one look to the next.
 *
 * Short messages may pass on a path where pages do not, if both ends assume a larger MTU than the path has. So
 * heartbeats read a page that the donor is known to hold (a hole is answered in a few bytes), and negotiations send
 * as much in the other direction (negotiate.c). A connection that had sent requests with a page and broke before any
 * of them was answered is barren: it is made anew and used, but the donor counts as away until a request with a page
 * is answered or, if none is sent for a while, until IDLE_LOOKS have passed.
 */
#ifndef GHOSTBOX_PAGER_LIVENESS_H
#define GHOSTBOX_PAGER_LIVENESS_H

#include "donor/donor.h"

#include <jansson.h>

/*
 * Looks at a channel. Requests may appear on the done list, as the connection may break. Answers that take longer
 * than slow_ns count as slow (latency.h). On the channel's thread.
 */
void liveness_look(struct channel *channel, int epoll_fd, uint64_t now_ns, uint64_t slow_ns);
/*
 * Adds "down_s" and "why" (null while the donor is up), "smoothed_us" and "slow" to a donor's status. In any thread.
 */
void liveness_to_json(struct donor *donor, json_t *status);

#endif
