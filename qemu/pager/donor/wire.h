/* SPDX-License-Identifier: MIT */
/*
 * The transmission phase of NBD on a socket, plain or under TLS, with as few system calls as possible: requests are
 * queued, and wire_flush() sends them together by one sendmsg(); wire_receive() receives all replies that have come
 * by one recvmsg(), long ones straight into their buffers. Under TLS, common/tls.h puts requests together into
 * records, and decrypts long replies straight into their buffers. The negotiation before is libnbd's, or over TLS
 * that of secure.h. Each wire belongs to its channel's thread.
 *
 * The server is not trusted: a reply that answers no request, lies outside its buffer or has the wrong length breaks
 * the connection. The chunks of a read must come in order, as all servers that we know send them (the specification
 * allows any order).
 */
#ifndef GHOSTBOX_WIRE_H
#define GHOSTBOX_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct request;
struct tls;
struct wire;

/*
 * Makes a wire on fd, a non-blocking socket. That and the TLS session (NULL: the bytes are not encrypted) stay the
 * caller's. NULL: no memory.
 */
struct wire *wire_create(int fd, struct tls *tls, bool structured_replies);
/* Frees a wire with no requests under way. NULL is allowed. */
void wire_destroy(struct wire *wire);

/*
 * Each queues a request. Returns 0, or -EAGAIN if too many requests are under way. buf must stay valid until the
 * request is completed.
 */
int wire_read(struct wire *wire, struct request *request, void *buf, uint32_t bytes, uint64_t offset);
int wire_write(struct wire *wire, struct request *request, const void *buf, uint32_t bytes, uint64_t offset);
int wire_trim(struct wire *wire, struct request *request, uint32_t bytes, uint64_t offset);

/*
 * Sends what is queued, as much as the socket takes. Returns 0, or -errno if the connection is broken: then
 * wire_abort() and wire_destroy() are the only calls left.
 */
int wire_flush(struct wire *wire);
/*
 * Receives replies and completes their requests. May leave bytes in the socket if there are many. Returns as above.
 */
int wire_receive(struct wire *wire);
/* Says for people why the connection broke with rc. */
const char *wire_why(const struct wire *wire, int rc);
/* How many bytes have come so far, in the socket's count. */
uint64_t wire_received(const struct wire *wire);
/* Completes each request under way with this errno. */
void wire_abort(struct wire *wire, int error);
/* Whether bytes are to be sent that the socket did not take. */
bool wire_blocked(const struct wire *wire);

/* Ends a request; error is 0 or an errno. It is in channel.c. */
void request_complete(struct request *request, int error);

#endif
