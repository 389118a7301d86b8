/* SPDX-License-Identifier: MIT */
/*
 * TLS 1.3 on a non-blocking socket, for NBD's STARTTLS: pre-shared keys with an ephemeral (EC)DHE exchange, so that a
 * key that is stolen later opens no traffic that was recorded before. Nothing else is offered or accepted: no
 * certificates, no earlier version, no key without the exchange, no session tickets.
 *
 * System calls. One recv() brings many records, and one send() takes many away. Messages are put together into
 * records of 16 KiB. GnuTLS shakes hands, changes keys and reads alerts; application data passes by its record layer
 * (tls_record.h).
 *
 * Keys are updated, in both directions, long before the 2^24 records that AES-GCM allows one key.
 *
 * A session belongs to one thread at a time.
 */
#ifndef GHOSTBOX_TLS_H
#define GHOSTBOX_TLS_H

#include "common/psk.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* How many records a key serves. Each direction has its own key, which the sender changes. */
#define TLS_REKEY_RECORDS (UINT64_C(1) << 23)

struct tls;

/* Finds the key of an identity. Returns false if there is none; to the client this looks like a wrong key. */
typedef bool (*tls_key_finder)(void *ctx, const uint8_t *identity, size_t identity_bytes, struct psk *psk);

/* How many bytes of memory a session maps, beside what GnuTLS takes from malloc. */
size_t tls_session_bytes(void);

/* Make a session on fd, a non-blocking socket, which stays the caller's. Return NULL if there is no memory. */
struct tls *tls_server_new(int fd, tls_key_finder find, void *ctx);
struct tls *tls_client_new(int fd, const char *identity, const struct psk *psk);
/* Sends close_notify, if the socket takes it at once, and frees the session. NULL is allowed. */
void tls_free(struct tls *tls);

/*
 * Goes on with the handshake. Returns 0 when both ends have proved that they know the key, -EAGAIN if the socket is
 * waited for, or -EPROTO if the handshake has failed; then tls_why() says why.
 */
int tls_handshake(struct tls *tls);
/* Says for people what has failed; "" if nothing has. */
const char *tls_why(const struct tls *tls);

/*
 * Fills the buffers with decrypted bytes, once the handshake is over. Calls recv() once at most, and never if
 * ask_socket is false. Returns how many bytes it has written, 0 at the end of the stream, -EAGAIN if no bytes have
 * come, or -errno: the socket's, or -EPROTO; then tls_why() says more.
 */
ssize_t tls_receive(struct tls *tls, const struct iovec *iov, unsigned n_iov, bool ask_socket);
/* Whether the session holds received bytes that tls_receive() has not given out yet. */
bool tls_has_input(const struct tls *tls);
/* Whether the last recv() filled the session's buffer: then the socket may hold more bytes. */
bool tls_socket_was_full(const struct tls *tls);
/* Returns how many (encrypted) bytes were received from the socket so far. */
uint64_t tls_received(const struct tls *tls);

/*
 * Encrypts as many of the bytes as the socket is likely to take, and sends them. Returns how many bytes the session
 * has taken (the caller must not give them again), -EAGAIN if it took none, or -errno; with -EPROTO, tls_why() says
 * more. With n_iov 0 it sends only what was encrypted before.
 */
ssize_t tls_send(struct tls *tls, const struct iovec *iov, unsigned n_iov);
/* Whether encrypted bytes wait for the socket. */
bool tls_has_output(const struct tls *tls);

/* For tests. Sets how many records the keys serve; returns how often this end has changed the keys. */
void tls_set_rekey(struct tls *tls, uint64_t n_records);
uint64_t tls_rekeyed(const struct tls *tls);

#endif
