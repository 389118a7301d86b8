/* SPDX-License-Identifier: MIT */
#include "common/tls.h"

#include "common/page_memory.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define RECORD_BYTES 16384u
/* A record on the wire has at most 256 bytes more than its contents (RFC 8446, 5.2). */
#define RECORD_WIRE_BYTES (RECORD_BYTES + 5u + 256u)
#define IN_BYTES          (4u * RECORD_WIRE_BYTES)
#define OUT_BYTES         (4u * RECORD_WIRE_BYTES + RESERVE_BYTES)
/* Room that is free when a record begins, because GnuTLS may add alerts, and answers to key updates, at any time. */
#define RESERVE_BYTES 4096u
/* Rounds of one tls_send(). After them the other connections of the thread have their turn. */
#define SENDS_MAX 16u
#define WHY_BYTES 192

/*
 * GnuTLS ties a pre-shared key to SHA-256, so that the suites with SHA-384 (AES-256-GCM) are out of reach. Plain PSK
 * is not among the key exchanges: it has no forward secrecy.
 */
#define PRIORITY                                                                                                     \
    "NONE:+VERS-TLS1.3:+ECDHE-PSK:+DHE-PSK:+AES-128-GCM:+CHACHA20-POLY1305:+AEAD:+SHA256:"                           \
    "+GROUP-X25519:+GROUP-SECP256R1:+GROUP-FFDHE2048:+COMP-NULL:+SIGN-ALL:%DISABLE_TLS13_COMPAT_MODE"

struct tls {
    gnutls_session_t session;
    gnutls_psk_client_credentials_t client; /* NULL in a server's session */
    int fd;
    tls_key_finder find;
    void *find_ctx;
    char why[WHY_BYTES];
    bool established;           /* the handshake is over */
    bool ended;                 /* the peer has closed the connection, or has sent close_notify */
    int socket_error;           /* the errno with which the socket failed, which GnuTLS does not pass on */
    bool may_receive, was_full; /* pull() may call recv() once; tls_socket_was_full() */
    uint64_t n_received;
    uint64_t n_sent, rekey_records, n_rekeyed; /* n_sent: records since the last change of this end's key */
    uint32_t in_at, in_end;                    /* GnuTLS has not read in[in_at, in_end) yet */
    uint32_t out_at, out_end;                  /* out[out_at, out_end) is not sent yet */
    uint8_t in[IN_BYTES];
    uint8_t out[OUT_BYTES];
    uint8_t record[RECORD_BYTES]; /* small messages, put together */
};

/* --- what all sessions share --- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static gnutls_priority_t priority;
static gnutls_psk_server_credentials_t server_keys;

/*
 * GnuTLS calls this for the identity that a client has sent. Returns 0 with its key, 1 if there is none, or -1 if
 * there is no memory. After 1, GnuTLS goes on with a random key, so that clients cannot find out which identities
 * exist.
 */
static int find_key(gnutls_session_t session, const gnutls_datum_t *identity, gnutls_datum_t *key)
{
    const struct tls *tls = gnutls_session_get_ptr(session);
    struct psk psk = {0};

    if (!tls->find(tls->find_ctx, identity->data, identity->size, &psk)) {
        return 1;
    }
    key->data = gnutls_malloc(psk.n_bytes);
    key->size = psk.n_bytes;
    if (key->data != NULL) {
        memcpy(key->data, psk.bytes, psk.n_bytes);
    }
    psk_wipe(&psk);
    return key->data != NULL ? 0 : -1;
}

static void share_init(void)
{
    if (gnutls_priority_init(&priority, PRIORITY, NULL) < 0) {
        priority = NULL;
        return;
    }
    if (gnutls_psk_allocate_server_credentials(&server_keys) < 0) {
        server_keys = NULL;
        return;
    }
    gnutls_psk_set_server_credentials_function2(server_keys, find_key);
}

/* --- the buffers that GnuTLS reads and writes --- */

static ssize_t pull(gnutls_transport_ptr_t ptr, void *data, size_t bytes)
{
    struct tls *tls = ptr;

    if (tls->in_at == tls->in_end) {
        if (!tls->may_receive) {
            gnutls_transport_set_errno(tls->session, EAGAIN);
            return -1;
        }
        ssize_t got = recv(tls->fd, tls->in, IN_BYTES, MSG_DONTWAIT);

        tls->may_receive = false;
        tls->was_full = got == (ssize_t)IN_BYTES;
        if (got <= 0) {
            bool waits = got < 0 && (errno == EAGAIN || errno == EINTR);

            tls->ended = got == 0;
            tls->socket_error = got < 0 && !waits ? errno : 0;
            gnutls_transport_set_errno(tls->session, errno);
            return got;
        }
        tls->in_at = 0;
        tls->in_end = (uint32_t)got;
        tls->n_received += (uint64_t)got;
    }
    size_t n = tls->in_end - tls->in_at < bytes ? tls->in_end - tls->in_at : bytes;

    memcpy(data, tls->in + tls->in_at, n);
    tls->in_at += (uint32_t)n;
    return (ssize_t)n;
}

static ssize_t push(gnutls_transport_ptr_t ptr, const void *data, size_t bytes)
{
    struct tls *tls = ptr;

    if (bytes > OUT_BYTES - tls->out_end) {
        /* The peer asks for many answers (to key updates), and does not receive them. */
        gnutls_transport_set_errno(tls->session, ENOBUFS);
        return -1;
    }
    memcpy(tls->out + tls->out_end, data, bytes);
    tls->out_end += (uint32_t)bytes;
    return (ssize_t)bytes;
}

/* Sends the encrypted bytes. Returns 0, -EAGAIN if some are left, or -errno. */
static int flush(struct tls *tls)
{
    while (tls->out_at < tls->out_end) {
        ssize_t sent = send(tls->fd, tls->out + tls->out_at, tls->out_end - tls->out_at, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent < 0) {
            return -errno;
        }
        tls->out_at += (uint32_t)sent;
    }
    tls->out_at = tls->out_end = 0;
    return 0;
}

/* --- sessions --- */

/* GnuTLS waits by this function only in a handshake with a time limit. Our callers wait and have the time limit. */
static int pull_never_waits(gnutls_transport_ptr_t ptr, unsigned int ms)
{
    (void)ptr;
    (void)ms;
    return 1;
}

static struct tls *session_new(int fd, unsigned flags)
{
    pthread_once(&once, share_init);
    if (priority == NULL || server_keys == NULL) {
        return NULL;
    }
    struct tls *tls = mmap(NULL, sizeof(*tls), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (tls == MAP_FAILED) {
        return NULL;
    }
    page_memory_hide(tls, sizeof(*tls));
    tls->fd = fd;
    tls->rekey_records = TLS_REKEY_RECORDS;
    if (gnutls_init(&tls->session, flags | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS) < 0) {
        munmap(tls, sizeof(*tls));
        return NULL;
    }
    gnutls_session_set_ptr(tls->session, tls);
    gnutls_transport_set_ptr(tls->session, tls);
    gnutls_transport_set_pull_function(tls->session, pull);
    gnutls_transport_set_push_function(tls->session, push);
    gnutls_transport_set_pull_timeout_function(tls->session, pull_never_waits);
    gnutls_handshake_set_timeout(tls->session, 0);
    if (gnutls_priority_set(tls->session, priority) < 0) {
        tls_free(tls);
        return NULL;
    }
    return tls;
}

size_t tls_session_bytes(void)
{
    return sizeof(struct tls);
}

struct tls *tls_server_new(int fd, tls_key_finder find, void *ctx)
{
    struct tls *tls = session_new(fd, GNUTLS_SERVER);

    if (tls == NULL) {
        return NULL;
    }
    tls->find = find;
    tls->find_ctx = ctx;
    if (gnutls_credentials_set(tls->session, GNUTLS_CRD_PSK, server_keys) < 0) {
        tls_free(tls);
        return NULL;
    }
    return tls;
}

struct tls *tls_client_new(int fd, const char *identity, const struct psk *psk)
{
    struct tls *tls = session_new(fd, GNUTLS_CLIENT);
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
    if (tls->established && !tls->ended && *tls->why == '\0' && flush(tls) == 0) {
        gnutls_bye(tls->session, GNUTLS_SHUT_WR);
        flush(tls);
    }
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

/*
 * Whether the handshake has failed as it does with a wrong key: the server finds that the client's proof does not fit
 * its key, and sends one of these alerts.
 */
static bool is_about_the_key(const struct tls *tls, int rc)
{
    if (tls->established) {
        return false;
    }
    if (rc == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        gnutls_alert_description_t alert = gnutls_alert_get(tls->session);

        return alert == GNUTLS_A_ILLEGAL_PARAMETER || alert == GNUTLS_A_UNKNOWN_PSK_IDENTITY ||
               alert == GNUTLS_A_DECRYPT_ERROR;
    }
    return tls->client == NULL && rc == GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER;
}

/* Keeps the reason for tls_why(), and sends the peer the alert that fits rc. Returns -EPROTO. */
static int fail(struct tls *tls, int rc)
{
    if (tls->socket_error != 0) {
        snprintf(tls->why, sizeof(tls->why), "%s", strerror(tls->socket_error));
    } else if (rc == GNUTLS_E_FATAL_ALERT_RECEIVED) {
        const char *alert = gnutls_alert_get_name(gnutls_alert_get(tls->session));
        snprintf(tls->why, sizeof(tls->why), "the other end refused: %s%s", alert != NULL ? alert : "unknown alert",
                 is_about_the_key(tls, rc) ? " (it does not know the identity, or the key is wrong)" : "");
    } else if (rc == GNUTLS_E_PREMATURE_TERMINATION || tls->ended) {
        snprintf(tls->why, sizeof(tls->why), "the other end closed the connection");
    } else {
        snprintf(tls->why, sizeof(tls->why), "%s",
                 is_about_the_key(tls, rc) ? "an unknown identity, or a wrong key" : gnutls_strerror(rc));
        gnutls_alert_send_appropriate(tls->session, rc);
        flush(tls);
    }
    return -EPROTO;
}

/* Fails the handshake, because the socket has failed. Returns -EPROTO. */
static int fail_to_send(struct tls *tls, int error)
{
    tls->socket_error = error;
    return fail(tls, GNUTLS_E_PUSH_ERROR);
}

/* Whether the session is TLS 1.3 with forward secrecy. PRIORITY allows nothing else; this checks the result. */
static bool is_as_wanted(gnutls_session_t session)
{
    gnutls_kx_algorithm_t kx = gnutls_kx_get(session);

    return gnutls_protocol_get_version(session) == GNUTLS_TLS1_3 &&
           (kx == GNUTLS_KX_ECDHE_PSK || kx == GNUTLS_KX_DHE_PSK);
}

int tls_handshake(struct tls *tls)
{
    int rc = flush(tls);

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
        return fail(tls, rc);
    }
    if (rc == 0 && !is_as_wanted(tls->session)) {
        return fail(tls, GNUTLS_E_INSUFFICIENT_SECURITY);
    }
    tls->established = rc == 0;
    int flushed = flush(tls);

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
    if (tls->n_sent < tls->rekey_records) {
        return 0;
    }
    int rc = gnutls_session_key_update(tls->session, 0);

    if (rc < 0) {
        return fail(tls, rc);
    }
    tls->n_sent = 0;
    tls->n_rekeyed++;
    return 0;
}

/* Decrypts into one buffer. Returns how many bytes it wrote (less than `room`: no more have come), or -errno. */
static ssize_t fill(struct tls *tls, uint8_t *to, size_t room)
{
    size_t got = 0;

    while (got < room && !(tls->ended && !tls_has_input(tls))) {
        ssize_t n = gnutls_record_recv(tls->session, to + got, room - got);

        if (n == GNUTLS_E_INTERRUPTED) {
            continue;
        }
        if (n == GNUTLS_E_AGAIN && tls->in_at < tls->in_end) {
            continue; /* GnuTLS has read a record without contents (a change of keys, a ticket), and others follow */
        }
        if (n == GNUTLS_E_AGAIN) {
            break;
        }
        if (n == 0) {
            tls->ended = true;
            break;
        }
        if (n < 0 && tls->ended) {
            break;
        }
        if (n < 0 && tls->socket_error != 0) {
            return -tls->socket_error;
        }
        if (n < 0 && gnutls_error_is_fatal((int)n)) {
            return fail(tls, (int)n);
        }
        got += n > 0 ? (size_t)n : 0;
    }
    return (ssize_t)got;
}

ssize_t tls_receive(struct tls *tls, const struct iovec *iov, unsigned n_iov, bool ask_socket)
{
    size_t got = 0;

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
    int rc = tls_has_output(tls) ? flush(tls) : 0;

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
    return tls->in_at < tls->in_end || gnutls_record_check_pending(tls->session) > 0;
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

/* The rest of the buffers of one tls_send(), which is not encrypted yet. */
struct source {
    const struct iovec *iov;
    unsigned n;
    size_t skip; /* bytes of iov[0] that are encrypted */
};

static void source_advance(struct source *source, size_t bytes)
{
    while (source->n > 0 && bytes >= source->iov->iov_len - source->skip) {
        bytes -= source->iov->iov_len - source->skip;
        source->skip = 0;
        source->iov++;
        source->n--;
    }
    source->skip += bytes;
}

/* Returns the contents of the next record: in the caller's buffer, or a copy if they come from several buffers. */
static const uint8_t *record_gather(struct tls *tls, const struct source *source, size_t *bytes)
{
    const uint8_t *first = (const uint8_t *)source->iov->iov_base + source->skip;
    size_t first_bytes = source->iov->iov_len - source->skip;

    if (first_bytes >= RECORD_BYTES || source->n == 1) {
        *bytes = first_bytes < RECORD_BYTES ? first_bytes : RECORD_BYTES;
        return first;
    }
    memcpy(tls->record, first, first_bytes);
    *bytes = first_bytes;
    for (unsigned i = 1; i < source->n && *bytes < RECORD_BYTES; i++) {
        size_t room = RECORD_BYTES - *bytes;
        size_t n = source->iov[i].iov_len < room ? source->iov[i].iov_len : room;

        memcpy(tls->record + *bytes, source->iov[i].iov_base, n);
        *bytes += n;
    }
    return tls->record;
}

/* Encrypts records while there is room for a whole one. Returns how many bytes it took, or -EPROTO. */
static ssize_t encrypt(struct tls *tls, struct source *source)
{
    size_t taken = 0;

    while (source->n > 0 && OUT_BYTES - tls->out_end >= RECORD_WIRE_BYTES + RESERVE_BYTES) {
        size_t bytes;
        const uint8_t *from = record_gather(tls, source, &bytes);

        if (bytes == 0) {
            source_advance(source, 0);
            continue;
        }
        if (rekey(tls) < 0) {
            return -EPROTO;
        }
        ssize_t n = gnutls_record_send(tls->session, from, bytes);

        if (n < 0) {
            return fail(tls, (int)n);
        }
        tls->n_sent++;
        taken += (size_t)n;
        source_advance(source, (size_t)n);
    }
    return (ssize_t)taken;
}

ssize_t tls_send(struct tls *tls, const struct iovec *iov, unsigned n_iov)
{
    struct source source = {.iov = iov, .n = n_iov};
    size_t taken = 0;
    int rc = flush(tls);

    for (unsigned i = 0; rc == 0 && source.n > 0 && i < SENDS_MAX; i++) {
        ssize_t n = encrypt(tls, &source);

        if (n < 0) {
            return n;
        }
        taken += (size_t)n;
        rc = flush(tls);
    }
    if (rc < 0 && rc != -EAGAIN) {
        return rc;
    }
    return taken > 0 || rc == 0 ? (ssize_t)taken : -EAGAIN;
}
