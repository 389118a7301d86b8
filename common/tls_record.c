/* SPDX-License-Identifier: MIT */
#include "common/tls_record.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define APPLICATION_DATA 23u
#define TAG_BYTES        16u

int tls_direction_take(struct tls_direction *direction, gnutls_session_t session, bool receives)
{
    gnutls_datum_t iv, key;
    unsigned char number[8];

    assert(direction->cipher == NULL);
    int rc = gnutls_record_get_state(session, receives, NULL, &iv, &key, number);

    if (rc < 0) {
        return rc;
    }
    if (iv.size != sizeof(direction->iv)) {
        return GNUTLS_E_INTERNAL_ERROR;
    }
    rc = gnutls_aead_cipher_init(&direction->cipher, gnutls_cipher_get(session), &key);
    if (rc < 0) {
        direction->cipher = NULL;
        return rc;
    }
    memcpy(direction->iv, iv.data, sizeof(direction->iv));
    direction->n_records = 0;
    for (unsigned i = 0; i < sizeof(number); i++) {
        direction->n_records = direction->n_records << 8 | number[i];
    }
    return 0;
}

void tls_direction_give_back(struct tls_direction *direction, gnutls_session_t session, bool receives)
{
    unsigned char number[8];

    if (direction->cipher == NULL) {
        return;
    }
    for (unsigned i = 0; i < sizeof(number); i++) {
        number[i] = (unsigned char)(direction->n_records >> (56 - 8 * i));
    }
    if (gnutls_record_set_state(session, receives, number) < 0) {
        abort(); /* GnuTLS would use a number twice */
    }
    tls_direction_free(direction);
}

void tls_direction_free(struct tls_direction *direction)
{
    if (direction->cipher != NULL) {
        gnutls_aead_cipher_deinit(direction->cipher);
        gnutls_memset(direction, 0, sizeof(*direction));
    }
}

size_t tls_source_read(struct tls_source *source, uint8_t *to, size_t most)
{
    size_t got = 0;

    while (source->n > 0 && got < most) {
        size_t there = source->iov->iov_len - source->skip;
        size_t n = there < most - got ? there : most - got;

        if (n > 0) {
            memcpy(to + got, (const uint8_t *)source->iov->iov_base + source->skip, n);
        }
        got += n;
        source->skip += n;
        if (n == there) {
            source->iov++;
            source->n--;
            source->skip = 0;
        }
    }
    return got;
}

/* Writes the nonce of the next record (RFC 8446, 5.3). */
static void nonce_write(const struct tls_direction *direction, uint8_t *nonce)
{
    memcpy(nonce, direction->iv, sizeof(direction->iv));
    for (unsigned i = 0; i < 8; i++) {
        nonce[4 + i] ^= (uint8_t)(direction->n_records >> (56 - 8 * i));
    }
}

int tls_record_seal(struct tls_direction *direction, uint8_t *contents, size_t bytes, uint8_t *to)
{
    uint8_t nonce[sizeof(direction->iv)];
    size_t sealed = bytes + 1 + TAG_BYTES;
    const uint8_t header[TLS_RECORD_HEADER_BYTES] = {APPLICATION_DATA, 3, 3, (uint8_t)(sealed >> 8), (uint8_t)sealed};

    nonce_write(direction, nonce);
    contents[bytes] = APPLICATION_DATA;
    memcpy(to, header, sizeof(header));
    int rc = gnutls_aead_cipher_encrypt(direction->cipher, nonce, sizeof(nonce), header, sizeof(header), TAG_BYTES,
                                        contents, bytes + 1, to + sizeof(header), &sealed);

    if (rc < 0) {
        return rc;
    }
    direction->n_records++;
    return (int)(sizeof(header) + sealed);
}

size_t tls_record_wire_bytes(const uint8_t *from, size_t came)
{
    if (came < TLS_RECORD_HEADER_BYTES) {
        return 0;
    }
    size_t bytes = TLS_RECORD_HEADER_BYTES + ((size_t)from[3] << 8 | from[4]);

    return bytes <= came || bytes > TLS_RECORD_WIRE_BYTES ? bytes : 0;
}

ssize_t tls_record_open(struct tls_direction *direction, const uint8_t *record, size_t wire_bytes, uint8_t *to)
{
    uint8_t nonce[sizeof(direction->iv)];
    size_t bytes = TLS_RECORD_WIRE_BYTES;

    if (record[0] != APPLICATION_DATA) {
        return TLS_RECORD_FORBIDDEN;
    }
    if (wire_bytes > TLS_RECORD_WIRE_BYTES || wire_bytes < TLS_RECORD_HEADER_BYTES + 1 + TAG_BYTES) {
        return TLS_RECORD_OTHER;
    }
    nonce_write(direction, nonce);
    if (gnutls_aead_cipher_decrypt(direction->cipher, nonce, sizeof(nonce), record, TLS_RECORD_HEADER_BYTES,
                                   TAG_BYTES, record + TLS_RECORD_HEADER_BYTES, wire_bytes - TLS_RECORD_HEADER_BYTES,
                                   to, &bytes) < 0 ||
        bytes > TLS_RECORD_BYTES + 1) {
        return TLS_RECORD_OTHER;
    }
    /* The type is the last byte that is not zero: the sender may pad a record. */
    while (bytes > 0 && to[bytes - 1] == 0) {
        bytes--;
    }
    if (bytes == 0 || to[bytes - 1] != APPLICATION_DATA) {
        return bytes == 1 ? TLS_RECORD_FORBIDDEN : TLS_RECORD_OTHER;
    }
    direction->n_records++;
    return (ssize_t)(bytes - 1);
}
