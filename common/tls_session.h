/* SPDX-License-Identifier: MIT */
/* What a TLS session is inside (tls.c), and how GnuTLS gets at its buffers. */
#ifndef GHOSTBOX_TLS_SESSION_H
#define GHOSTBOX_TLS_SESSION_H

#include "common/tls.h"
#include "common/tls_record.h"

#include <gnutls/gnutls.h>

#define TLS_IN_BYTES  (4u * TLS_RECORD_WIRE_BYTES)
#define TLS_OUT_BYTES (4u * TLS_RECORD_WIRE_BYTES + TLS_RESERVE_BYTES)
/* Room that is free when a record begins, because GnuTLS may add alerts, and answers to key updates, at any time. */
#define TLS_RESERVE_BYTES 4096u
#define TLS_WHY_BYTES     192

struct tls {
    gnutls_session_t session;
    gnutls_psk_client_credentials_t client; /* NULL in a server's session */
    int fd;
    tls_key_finder find;
    void *find_ctx;
    char why[TLS_WHY_BYTES];
    bool established;           /* the handshake is over */
    bool owes;                  /* GnuTLS may want to send something before the next record: new keys */
    bool ended;                 /* the peer has closed the connection, or has sent close_notify */
    int socket_error;           /* the errno with which the socket failed, which GnuTLS does not pass on */
    bool may_receive, was_full; /* pull() may call recv() once; tls_socket_was_full() */
    uint64_t n_received;
    uint64_t rekey_records, n_rekeyed;
    struct tls_direction sends, receives; /* taken from GnuTLS after the handshake */
    uint32_t taken, most;                 /* the peer takes records of `taken` bytes, and none of more than `most` */
    uint32_t in_at, in_end;               /* in[in_at, in_end) was received and is not decrypted yet */
    uint32_t given_end;                   /* after the handshake, GnuTLS may read in[in_at, given_end) */
    uint32_t opened_at, opened_end;       /* opened[opened_at, opened_end) is decrypted and not given out yet */
    uint32_t out_at, out_end;             /* out[out_at, out_end) is not sent yet */
    uint8_t in[TLS_IN_BYTES];
    uint8_t out[TLS_OUT_BYTES];
    uint8_t opened[TLS_RECORD_WIRE_BYTES];
    uint8_t contents[TLS_RECORD_BYTES + 1]; /* of the record that is encrypted next */
};

/* Makes a session; flags are those of gnutls_init(). Returns NULL if there is no memory. */
struct tls *tls_session_new(int fd, unsigned flags);
/* Calls recv() once, and returns what it returns. */
ssize_t tls_in_receive(struct tls *tls);
/* Sends the encrypted bytes. Returns 0, -EAGAIN if some are left, or -errno. */
int tls_flush(struct tls *tls);
/* Keeps the reason for tls_why(), and sends the peer the alert that fits rc. Returns -EPROTO. */
int tls_fail(struct tls *tls, int rc);
/* Takes both directions from GnuTLS. Returns 0 or -EPROTO. */
int tls_take(struct tls *tls);

#endif
