/* SPDX-License-Identifier: MIT */
/*
 * The connections of a worker that wait for their client's bandwidth (clients.h). Epoll reports nothing of them but
 * hang-ups until their time comes. Only the worker calls these functions.
 */
#ifndef GHOSTBOX_MEMSERVER_DELAYS_H
#define GHOSTBOX_MEMSERVER_DELAYS_H

#include "memserver/connection.h"

struct delays {
    struct connection *first;
    uint64_t until_ns; /* the first time at which one of them may go on, or an earlier time; 0: there is none */
};

/* Lists a connection, whose delayed_until_ns is set, or takes it off the list. */
void delays_set(struct delays *delays, struct connection *connection, bool delayed);
/*
 * Returns the first connection, if the time of one has come; the caller looks at all of them, and calls delays_set()
 * for each that has to wait longer. Returns NULL otherwise.
 */
struct connection *delays_due(struct delays *delays, uint64_t now_ns);
/* Returns the timeout, or the time until the first delay is over if that is less. -1 is no timeout. */
int delays_timeout_ms(const struct delays *delays, int timeout_ms);

#endif
