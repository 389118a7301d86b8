/* SPDX-License-Identifier: MIT */
/* The transmission phase: requests in, replies out. A request is validated wholly, then executed without checks. */
#ifndef GHOSTBOX_MEMSERVER_TRANSMIT_H
#define GHOSTBOX_MEMSERVER_TRANSMIT_H

#include "memserver/connection.h"

#include <sys/uio.h>

/* The largest READ and WRITE; what the specification tells clients to assume. */
#define TRANSMIT_PAYLOAD_MAX_BYTES (32u << 20)

uint16_t transmit_flags(const struct connection *connection);
enum connection_parse transmit_parse(struct connection *connection);

/* Where the payload that a write waits for may be received directly, and how much; 0: nowhere. */
size_t transmit_direct(struct connection *connection, struct iovec *iov);
void transmit_direct_done(struct connection *connection, size_t bytes);
/* The connection ends: accounts for the part of a write that had arrived. */
void transmit_abandon(struct connection *connection);

#endif
