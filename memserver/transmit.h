/* SPDX-License-Identifier: MIT */
/*
 * The transmission phase: requests come in, replies go out. A request is validated wholly, then executed without
 * checks. All functions run on the connection's worker thread.
 */
#ifndef GHOSTBOX_MEMSERVER_TRANSMIT_H
#define GHOSTBOX_MEMSERVER_TRANSMIT_H

#include "memserver/connection.h"

#include <sys/uio.h>

/* The largest READ and WRITE: the limit that the specification tells clients to assume. */
#define TRANSMIT_PAYLOAD_MAX_BYTES (32u << 20)

/* The transmission flags of an export for this client. */
uint16_t transmit_flags(const struct connection *connection);
/* Executes requests until the input is used up, the replies are full, or the work of one turn is done. */
enum connection_parse transmit_parse(struct connection *connection);

/*
 * If a write waits for its payload, sets *iov to the export's memory where the payload belongs. Returns how many
 * bytes may be received there, 0 if no write waits.
 */
size_t transmit_direct(struct connection *connection, struct iovec *iov);
/* So many bytes were received where transmit_direct() said. */
void transmit_direct_done(struct connection *connection, size_t bytes);
/* Called when the connection ends: marks the part of a write that had arrived as data. */
void transmit_abandon(struct connection *connection);

#endif
