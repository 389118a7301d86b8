/* SPDX-License-Identifier: MIT */
#include "common/tls.h"

#include "common/tls_session.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* The contents of a record that every peer takes (RFC 8449, 4). */
#define LEAST_BYTES 63u
/* The most contents of a record until the peer is known to take so many: they are 64 records of the least size. */
#define FIRST_BYTES 4096u
/* Rounds of one tls_send(). After them the other connections of the thread have their turn. */
#define SENDS_MAX 16u

/* --- sessions --- */

size_t tls_session_bytes(void)
{
    return sizeof(struct tls);
}

struct tls *tls_server_new(int fd, tls_key_finder find, void *ctx)
{
    struct tls *tls = tls_session_new(fd, GNUTLS_SERVER);

    if (tls == NULL) {
        return NULL;
    }
    tls->find = find;
    tls->find_ctx = ctx;
    return tls;
}

struct tls *tls_client_new(int fd, const char *identity, const struct psk *psk)
{
    struct tls *tls = tls_session_new(fd, GNUTLS_CLIENT);
    /* GnuTLS copies both. */
    const gnutls_datum_t key = {.data = (unsigned char *)(uintptr_t)psk->bytes, .size = psk->n_bytes};

    if (tls == NULL) {
        return NULL;
    }
    if (gnutls_psk_allocate_client_credentials(&tls->client) < 0 ||
        gnutls_psk_set_client_credentials(tls->client, identity, &key, GNUTLS_PSK_KEY_RAW) < 0 ||
        gnutls_credentials_set(tls->session, GNUTLS_CRD_PSK, tls->client) < 0) {
        tls_free(tls);
        return NULL;
    }
    return tls;
}

void tls_free(struct tls *tls)
{
    if (tls == NULL) {
        return;
    }
    if (tls->established && !tls->ended && *tls->why == '\0' && tls_flush(tls) == 0) {
        tls_direction_give_back(&tls->sends, tls->session, false);
        gnutls_bye(tls->session, GNUTLS_SHUT_WR);
        tls_flush(tls);
    }
    tls_direction_free(&tls->sends);
    tls_direction_free(&tls->receives);
    gnutls_deinit(tls->session);
    if (tls->client != NULL) {
        gnutls_psk_free_client_credentials(tls->client);
    }
    munmap(tls, sizeof(*tls));
}

const char *tls_why(const struct tls *tls)
{
    return tls->why;
}

/* Fails the handshake, because the socket has failed. Returns -EPROTO. */
static int fail_to_send(struct tls *tls, int error)
{
    tls->socket_error = error;
    return tls_fail(tls, GNUTLS_E_PUSH_ERROR);
}

/* Whether the session is TLS 1.3 with forward secrecy. tls_session.c allows nothing else; this checks it. */
static bool is_as_wanted(gnutls_session_t session)
{
    gnutls_kx_algorithm_t kx = gnutls_kx_get(session);

    return gnutls_protocol_get_version(session) == GNUTLS_TLS1_3 &&
           (kx == GNUTLS_KX_ECDHE_PSK || kx == GNUTLS_KX_DHE_PSK);
}

int tls_handshake(struct tls *tls)
{
    int rc = tls_flush(tls);

    if (rc < 0) {
        return rc == -EAGAIN ? rc : fail_to_send(tls, -rc);
    }
    if (tls->established) {
        return 0;
    }
    do {
        tls->may_receive = true;
        rc = gnutls_handshake(tls->session);
    } while (rc == GNUTLS_E_INTERRUPTED || (rc < 0 && !gnutls_error_is_fatal(rc) && tls->in_at < tls->in_end));
    if (rc < 0 && gnutls_error_is_fatal(rc)) {
        return tls_fail(tls, rc);
    }
    if (rc == 0 && !is_as_wanted(tls->session)) {
        return tls_fail(tls, GNUTLS_E_INSUFFICIENT_SECURITY);
    }
    if (rc == 0) {
        tls->established = true;
        tls->taken = LEAST_BYTES;
        tls->most = TLS_RECORD_BYTES;
        tls->given_end = tls->in_at;
        if (tls_take(tls) < 0) {
            return -EPROTO;
        }
    }
    int flushed = tls_flush(tls);

    if (flushed < 0 && flushed != -EAGAIN) {
        return fail_to_send(tls, -flushed);
    }
    return rc == 0 ? flushed : -EAGAIN;
}

/* --- records --- */

/*
 * Changes the key of this direction once it has served rekey_records records. The peer changes its own: GnuTLS would
 * end the session if the peer's request for a change crossed one of ours. Returns 0 or -EPROTO.
 */
static int rekey(struct tls *tls)
{
    if (tls->sends.n_records < tls->rekey_records) {
        return 0;
    }
    tls_direction_give_back(&tls->sends, tls->session, false);
    int rc = gnutls_session_key_update(tls->session, 0);

    if (rc == 0) {
        rc = tls_direction_take(&tls->sends, tls->session, false);
    }
    if (rc < 0) {
        return tls_fail(tls, rc);
    }
    tls->n_rekeyed++;
    return 0;
}

/*
 * Lets GnuTLS read the next record, which is not application data, or is wrong: an alert, a change of keys. It may
 * answer, at once or with the next record. Returns 0 or -EPROTO.
 */
static int give_to_gnutls(struct tls *tls, size_t wire_bytes)
{
    size_t came = tls->in_end - tls->in_at;
    ssize_t n;

    tls->given_end = tls->in_at + (uint32_t)(wire_bytes < came ? wire_bytes : came);
    tls_direction_give_back(&tls->sends, tls->session, false);
    tls_direction_give_back(&tls->receives, tls->session, true);
    do {
        n = gnutls_record_recv(tls->session, tls->opened, TLS_RECORD_BYTES);
    } while (n == GNUTLS_E_INTERRUPTED || (n == GNUTLS_E_AGAIN && tls->in_at < tls->given_end));
    if (n < 0 && gnutls_error_is_fatal((int)n)) {
        return tls_fail(tls, (int)n);
    }
    tls->ended = n == 0;
    tls->opened_at = 0;
    tls->opened_end = n > 0 ? (uint32_t)n : 0;
    tls->owes = true;
    return tls_take(tls);
}

/* Goes on by one record, or by one recv(). Returns 0, -EAGAIN if neither can be had, or -errno. */
static int record_next(struct tls *tls)
{
    const uint8_t *record = tls->in + tls->in_at;
    size_t wire_bytes = tls_record_wire_bytes(record, tls->in_end - tls->in_at);

    if (wire_bytes == 0) {
        if (!tls->may_receive) {
            return -EAGAIN;
        }
        ssize_t got = tls_in_receive(tls);

        return got >= 0 ? 0 : tls->socket_error != 0 ? -tls->socket_error : -EAGAIN;
    }
    ssize_t n = tls_record_open(&tls->receives, record, wire_bytes, tls->opened);

    if (n == TLS_RECORD_FORBIDDEN) {
        return tls_fail(tls, GNUTLS_E_UNEXPECTED_PACKET);
    }
    if (n < 0) {
        return give_to_gnutls(tls, wire_bytes);
    }
    tls->in_at += (uint32_t)wire_bytes;
    tls->opened_at = 0;
    tls->opened_end = (uint32_t)n;
    return 0;
}

/* Decrypts into one buffer. Returns how many bytes it wrote (less than `room`: no more have come), or -errno. */
static ssize_t fill(struct tls *tls, uint8_t *to, size_t room)
{
    size_t got = 0;

    while (got < room) {
        if (tls->opened_at < tls->opened_end) {
            size_t there = tls->opened_end - tls->opened_at;
            size_t n = there < room - got ? there : room - got;

            memcpy(to + got, tls->opened + tls->opened_at, n);
            tls->opened_at += (uint32_t)n;
            got += n;
            continue;
        }
        if (tls->ended) {
            break;
        }
        int rc = record_next(tls);

        if (rc == -EAGAIN) {
            break;
        }
        if (rc < 0) {
            return rc;
        }
    }
    return (ssize_t)got;
}

ssize_t tls_receive(struct tls *tls, const struct iovec *iov, unsigned n_iov, bool ask_socket)
{
    size_t got = 0;

    if (!tls->established || *tls->why != '\0') {
        return -EPROTO;
    }
    tls->may_receive = ask_socket;
    for (unsigned i = 0; i < n_iov; i++) {
        ssize_t n = fill(tls, iov[i].iov_base, iov[i].iov_len);

        if (n < 0) {
            return n;
        }
        got += (size_t)n;
        if ((size_t)n < iov[i].iov_len) {
            break;
        }
    }
    /* GnuTLS may have answered a key update of the peer. */
    int rc = tls_has_output(tls) ? tls_flush(tls) : 0;

    if (rc < 0 && rc != -EAGAIN) {
        return rc;
    }
    if (got > 0) {
        return (ssize_t)got;
    }
    return tls->ended ? 0 : -EAGAIN;
}

bool tls_has_input(const struct tls *tls)
{
    return tls->opened_at < tls->opened_end ||
           (!tls->ended && *tls->why == '\0' &&
            tls_record_wire_bytes(tls->in + tls->in_at, tls->in_end - tls->in_at) > 0);
}

bool tls_socket_was_full(const struct tls *tls)
{
    return tls->was_full;
}

uint64_t tls_received(const struct tls *tls)
{
    return tls->n_received;
}

bool tls_has_output(const struct tls *tls)
{
    return tls->out_at < tls->out_end;
}

void tls_set_rekey(struct tls *tls, uint64_t n_records)
{
    tls->rekey_records = n_records;
}

uint64_t tls_rekeyed(const struct tls *tls)
{
    return tls->n_rekeyed;
}

/*
 * Encrypts a record by GnuTLS, or several: GnuTLS knows the size that the peer takes (RFC 8449), and tells it only in
 * this way. Returns 0 or -EPROTO.
 */
static int seal_by_gnutls(struct tls *tls, size_t bytes)
{
    tls_direction_give_back(&tls->sends, tls->session, false);
    for (size_t at = 0; at < bytes;) {
        ssize_t n = gnutls_record_send(tls->session, tls->contents + at, bytes - at);

        if (n < 0) {
            return tls_fail(tls, (int)n);
        }
        if ((size_t)n < bytes - at) {
            tls->most = (uint32_t)n;
        }
        tls->taken = tls->taken < (size_t)n ? (uint32_t)n : tls->taken;
        at += (size_t)n;
    }
    int rc = tls_direction_take(&tls->sends, tls->session, false);

    return rc < 0 ? tls_fail(tls, rc) : 0;
}

/* Encrypts a record with the next bytes of the source. Returns how many those are, or -EPROTO. */
static ssize_t seal(struct tls *tls, struct tls_source *source)
{
    size_t room = tls->taken < FIRST_BYTES && tls->most > FIRST_BYTES ? FIRST_BYTES : tls->most;
    size_t bytes = tls_source_read(source, tls->contents, room);

    if (bytes == 0) {
        return 0;
    }
    if (rekey(tls) < 0) {
        return -EPROTO;
    }
    if (bytes > tls->taken || tls->owes) {
        tls->owes = false;
        return seal_by_gnutls(tls, bytes) < 0 ? -EPROTO : (ssize_t)bytes;
    }
    int n = tls_record_seal(&tls->sends, tls->contents, bytes, tls->out + tls->out_end);

    if (n < 0) {
        return tls_fail(tls, n);
    }
    tls->out_end += (uint32_t)n;
    return (ssize_t)bytes;
}

/* Encrypts records while there is room for a whole one. Returns how many bytes it took, or -EPROTO. */
static ssize_t encrypt(struct tls *tls, struct tls_source *source)
{
    size_t taken = 0;

    while (source->n > 0 && TLS_OUT_BYTES - tls->out_end >= TLS_RECORD_WIRE_BYTES + TLS_RESERVE_BYTES) {
        ssize_t n = seal(tls, source);

        if (n < 0) {
            return n;
        }
        taken += (size_t)n;
    }
    return (ssize_t)taken;
}

ssize_t tls_send(struct tls *tls, const struct iovec *iov, unsigned n_iov)
{
    struct tls_source source = {.iov = iov, .n = n_iov};
    size_t taken = 0;

    if (!tls->established || *tls->why != '\0') {
        return -EPROTO;
    }
    int rc = tls_flush(tls);

    for (unsigned i = 0; rc == 0 && source.n > 0 && i < SENDS_MAX; i++) {
        ssize_t n = encrypt(tls, &source);

        if (n < 0) {
            return n;
        }
        taken += (size_t)n;
        rc = tls_flush(tls);
    }
    if (rc < 0 && rc != -EAGAIN) {
        return rc;
    }
    return taken > 0 || rc == 0 ? (ssize_t)taken : -EAGAIN;
}
