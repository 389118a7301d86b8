/* SPDX-License-Identifier: MIT */
#include "common/tls_session.h"

#include "common/page_memory.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

/*
 * GnuTLS ties a pre-shared key to SHA-256, so that the suites with SHA-384 (AES-256-GCM) are out of reach. Plain PSK
 * is not among the key exchanges: it has no forward secrecy.
 */
#define PRIORITY                                                                                                     \
    "NONE:+VERS-TLS1.3:+ECDHE-PSK:+DHE-PSK:+AES-128-GCM:+CHACHA20-POLY1305:+AEAD:+SHA256:"                           \
    "+GROUP-X25519:+GROUP-SECP256R1:+GROUP-FFDHE2048:+COMP-NULL:+SIGN-ALL:%DISABLE_TLS13_COMPAT_MODE"

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

ssize_t tls_in_receive(struct tls *tls)
{
    memmove(tls->in, tls->in + tls->in_at, tls->in_end - tls->in_at);
    tls->in_end -= tls->in_at;
    tls->in_at = 0;
    size_t room = TLS_IN_BYTES - tls->in_end;
    ssize_t got = recv(tls->fd, tls->in + tls->in_end, room, MSG_DONTWAIT);

    tls->may_receive = false;
    tls->was_full = got == (ssize_t)room;
    if (got <= 0) {
        bool waits = got < 0 && (errno == EAGAIN || errno == EINTR);

        tls->ended = got == 0;
        tls->socket_error = got < 0 && !waits ? errno : 0;
        return got;
    }
    tls->in_end += (uint32_t)got;
    tls->n_received += (uint64_t)got;
    return got;
}

static ssize_t pull(gnutls_transport_ptr_t ptr, void *data, size_t bytes)
{
    struct tls *tls = ptr;
    const uint32_t *end = tls->established ? &tls->given_end : &tls->in_end;

    if (tls->in_at == *end) {
        if (tls->established || !tls->may_receive) {
            gnutls_transport_set_errno(tls->session, EAGAIN);
            return -1;
        }
        ssize_t got = tls_in_receive(tls);

        if (got <= 0) {
            gnutls_transport_set_errno(tls->session, errno);
            return got;
        }
    }
    size_t there = *end - tls->in_at;
    size_t n = there < bytes ? there : bytes;

    memcpy(data, tls->in + tls->in_at, n);
    tls->in_at += (uint32_t)n;
    return (ssize_t)n;
}

static ssize_t push(gnutls_transport_ptr_t ptr, const void *data, size_t bytes)
{
    struct tls *tls = ptr;

    if (bytes > TLS_OUT_BYTES - tls->out_end) {
        /* The peer asks for many answers (to key updates), and does not receive them. */
        gnutls_transport_set_errno(tls->session, ENOBUFS);
        return -1;
    }
    memcpy(tls->out + tls->out_end, data, bytes);
    tls->out_end += (uint32_t)bytes;
    return (ssize_t)bytes;
}

int tls_flush(struct tls *tls)
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

struct tls *tls_session_new(int fd, unsigned flags)
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
    if (gnutls_priority_set(tls->session, priority) < 0 ||
        ((flags & GNUTLS_SERVER) != 0 && gnutls_credentials_set(tls->session, GNUTLS_CRD_PSK, server_keys) < 0)) {
        tls_free(tls);
        return NULL;
    }
    return tls;
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

int tls_fail(struct tls *tls, int rc)
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
        tls_direction_give_back(&tls->sends, tls->session, false);
        gnutls_alert_send_appropriate(tls->session, rc);
        tls_flush(tls);
    }
    return -EPROTO;
}

int tls_take(struct tls *tls)
{
    int rc = tls_direction_take(&tls->sends, tls->session, false);

    if (rc == 0) {
        rc = tls_direction_take(&tls->receives, tls->session, true);
    }
    return rc < 0 ? tls_fail(tls, rc) : 0;
}
