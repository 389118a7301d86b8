/* SPDX-License-Identifier: MIT */
/*
 * Records of TLS 1.3 that hold application data (RFC 8446, 5.2), encrypted and decrypted by GnuTLS's ciphers without
 * its record layer, which takes as long for a page as the cipher does.
 *
 * GnuTLS makes the keys, and stays the owner of all else: alerts, changes of keys, records that are wrong in any way.
 * For these a direction is given back to it, and taken again afterwards.
 */
#ifndef GHOSTBOX_TLS_RECORD_H
#define GHOSTBOX_TLS_RECORD_H

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* The most contents of a record, its header, and the most that a record has on the wire. */
#define TLS_RECORD_BYTES        16384u
#define TLS_RECORD_HEADER_BYTES 5u
#define TLS_RECORD_WIRE_BYTES   (TLS_RECORD_HEADER_BYTES + TLS_RECORD_BYTES + 256u)

/* One direction of a session: what this end sends, or what it receives. Zeroed, it is not taken. */
struct tls_direction {
    gnutls_aead_cipher_hd_t cipher; /* NULL: not taken */
    uint8_t iv[12];
    uint64_t n_records; /* with this key: the number of the next record */
};

/* Takes a direction that is not taken from GnuTLS, with its present key. Returns 0, or GnuTLS's error. */
int tls_direction_take(struct tls_direction *direction, gnutls_session_t session, bool receives);
/*
 * Gives a direction back to GnuTLS, which goes on behind the last record. Does nothing if it is not taken: the
 * numbers of records never go back, because two records with one key and number would betray what is in them.
 */
void tls_direction_give_back(struct tls_direction *direction, gnutls_session_t session, bool receives);
/* Forgets the key. */
void tls_direction_free(struct tls_direction *direction);

/* The buffers from which records take their contents, without those that were read. */
struct tls_source {
    const struct iovec *iov;
    unsigned n;
    size_t skip; /* bytes of iov[0] that were read */
};

/* Copies `most` bytes, or all if there are fewer; returns how many. */
size_t tls_source_read(struct tls_source *source, uint8_t *to, size_t most);

/*
 * Encrypts a record. contents holds `bytes` bytes, TLS_RECORD_BYTES at most, and has room for one more. `to` has room
 * for TLS_RECORD_WIRE_BYTES. Returns how many bytes it wrote, or GnuTLS's error.
 */
int tls_record_seal(struct tls_direction *direction, uint8_t *contents, size_t bytes, uint8_t *to);
/*
 * Returns how many bytes the record that begins at `from` has on the wire; 0 if fewer than those have come. A
 * record whose length field is too large gives that length, so that the caller refuses the record.
 */
size_t tls_record_wire_bytes(const uint8_t *from, size_t came);
/*
 * Decrypts a record into `to`, which has room for TLS_RECORD_WIRE_BYTES. Returns how many bytes of application data
 * it has, or TLS_RECORD_OTHER if it holds something else or is wrong: then it counts as not received, and GnuTLS may
 * read it. TLS_RECORD_FORBIDDEN: GnuTLS must not see it. Behind a part of a handshake's message an empty record of
 * that kind makes GnuTLS 3.7.9 loop without end. RFC 8446 (5.1, 5.2) forbids such records, and any whose outer type
 * is not that of application data.
 */
#define TLS_RECORD_OTHER     (-1)
#define TLS_RECORD_FORBIDDEN (-2)
ssize_t tls_record_open(struct tls_direction *direction, const uint8_t *record, size_t wire_bytes, uint8_t *to);

#endif
