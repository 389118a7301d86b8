/* SPDX-License-Identifier: MIT */
/*
 * The transmission phase of NBD on a plain socket, with as few system calls as there can be: requests are queued and
 * leave together by wire_flush() in one sendmsg; wire_receive() takes all replies that have come with one receive,
 * long ones straight into their buffers. libnbd negotiates the connection before, and keeps it where there is TLS.
 *
 * The other end is not trusted: a reply to nothing, outside its buffer or of the wrong length breaks the connection.
 * The chunks of a read must come in order, as all servers that we know send them (the specification allows any
 * order).
 */
#ifndef GHOSTBOX_WIRE_H
#define GHOSTBOX_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct request;
struct wire;

/* The socket is not blocking and stays the caller's. NULL: no memory. */
struct wire *wire_create(int fd, bool structured_replies);
void wire_destroy(struct wire *wire);

/* Each queues a request: 0, or -EAGAIN when too many are under way. buf must stay until it is completed. */
int wire_read(struct wire *wire, struct request *request, void *buf, uint32_t bytes, uint64_t offset);
int wire_write(struct wire *wire, struct request *request, const void *buf, uint32_t bytes, uint64_t offset);
int wire_trim(struct wire *wire, struct request *request, uint32_t bytes, uint64_t offset);

/* Both return 0, or -errno: the connection is of no use any more, and wire_abort() is the only call left. */
int wire_flush(struct wire *wire);
/* May leave bytes in the socket, if there are many. */
int wire_receive(struct wire *wire);
/* Bytes that have come so far. */
uint64_t wire_received(const struct wire *wire);
/* Completes every request under way with this error. */
void wire_abort(struct wire *wire, int error);
/* Whether something is to be sent that the socket does not take now. */
bool wire_blocked(const struct wire *wire);

/* In channel.c: a request is answered; error is 0 or an errno. */
void request_complete(struct request *request, int error);

#endif
