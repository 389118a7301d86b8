/* SPDX-License-Identifier: MIT */
#include "memserver/connection.h"

#include "common/log.h"
#include "common/nbd_protocol.h"
#include "common/page_memory.h"
#include "memserver/negotiate.h"
#include "memserver/starttls.h"
#include "memserver/transmit.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * Each connection has a mapping of its own, so that its pages are taken only when they are used, and go back to the
 * kernel when the connection ends (malloc may keep what is freed).
 */
struct connection *connection_new(int fd, const char *peer, struct exports *exports, struct counters *counters)
{
    struct connection *connection =
        mmap(NULL, sizeof(*connection), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (connection == MAP_FAILED) {
        return NULL;
    }
    page_memory_hide(connection, sizeof(*connection));
    connection->fd = fd;
    connection->client.fd = fd;
    connection->exports = exports;
    connection->counters = counters;
    connection->window_bytes = CONNECTION_IN_BYTES;
    connection->turn_bytes = CONNECTION_LONG_TURN;
    connection->mark_bytes = 1;
    connection->created_at_ms = clock_coarse_ms();
    snprintf(connection->peer, sizeof(connection->peer), "%s", peer);
    negotiate_greet(connection);
    return connection;
}

void connection_free(struct connection *connection)
{
    transmit_abandon(connection);
    replies_drop(&connection->replies);
    tls_free(connection->tls);
    /* The end of a lease waits for the detach: from then on nothing of the lease may be left here. */
    if (page_memory_release(connection->in, sizeof(connection->in)) < 0) {
        explicit_bzero(connection->in, sizeof(connection->in));
    }
    export_detach(connection->exports, &connection->client);
    close(connection->fd);
    munmap(connection, sizeof(*connection));
}

/* The bytes that are left are less than one request or option, so moving them to the front is cheap. */
static void input_compact(struct connection *connection)
{
    uint32_t left = connection_available(connection);
    if (connection->in_start > 0 && left > 0) {
        memmove(connection->in, connection->in + connection->in_start, left);
    }
    connection->in_start = 0;
    connection->in_end = left;
}

/* Receives and, on an encrypted connection, decrypts. Returns as recvmsg(2) does, with errno. */
static ssize_t socket_receive(struct connection *connection, struct iovec *iov, unsigned n_iov)
{
    if (!connection->encrypts) {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = n_iov};
        ssize_t n = n_iov == 1 ? recv(connection->fd, iov->iov_base, iov->iov_len, MSG_DONTWAIT)
                               : recvmsg(connection->fd, &message, MSG_DONTWAIT);
        connection->n_received_bytes += n > 0 && connection->phase == PHASE_TRANSMISSION ? (uint64_t)n : 0;
        return n;
    }
    uint64_t before = tls_received(connection->tls);
    ssize_t n = tls_receive(connection->tls, iov, n_iov, true);
    /* SO_RCVLOWAT, for which this count is, counts the bytes of the socket, that is, encrypted ones. */
    connection->n_received_bytes +=
        connection->phase == PHASE_TRANSMISSION ? tls_received(connection->tls) - before : 0;
    if (n < 0) {
        errno = (int)-n;
        return -1;
    }
    return n;
}

/* Receives once: first into the export's memory where a write waits for its payload, the rest into `in`. */
static ssize_t input_receive(struct connection *connection)
{
    input_compact(connection);
    uint32_t room = CONNECTION_IN_BYTES - connection->in_end;
    uint32_t window = room < connection->window_bytes ? room : connection->window_bytes;
    struct iovec iov[2];
    size_t direct = transmit_direct(connection, &iov[0]);
    if (direct > (size_t)connection->turn_bytes) {
        iov[0].iov_len = (size_t)connection->turn_bytes;
        ssize_t n = socket_receive(connection, iov, 1);
        transmit_direct_done(connection, n > 0 ? (size_t)n : 0);
        return n;
    }
    if (direct == 0) {
        iov[0] = (struct iovec){.iov_base = connection->in + connection->in_end, .iov_len = window};
        ssize_t n = socket_receive(connection, iov, 1);
        connection->in_end += n > 0 ? (uint32_t)n : 0;
        return n;
    }
    assert(connection->in_end == 0);
    iov[1] = (struct iovec){.iov_base = connection->in, .iov_len = window};
    ssize_t n = socket_receive(connection, iov, 2);
    if (n > 0) {
        size_t payload = (size_t)n < direct ? (size_t)n : direct;
        transmit_direct_done(connection, payload);
        connection->in_end = (uint32_t)((size_t)n - payload);
    }
    return n;
}

static enum connection_parse input_parse(struct connection *connection)
{
    return connection->phase == PHASE_TRANSMISSION ? transmit_parse(connection) : negotiate_parse(connection);
}

/* Logs what errno says. Hang-ups are logged at debug level, peer timeouts at info. */
static void failure_say(const struct connection *connection, const char *what)
{
    if (errno == ETIMEDOUT) {
        log_info("%s: connection closed: the client has vanished, or does not read its answers (--peer-timeout)",
                 connection->peer);
    } else if (connection->tls != NULL && *tls_why(connection->tls) != '\0') {
        log_info("%s: TLS: %s: connection closed", connection->peer, tls_why(connection->tls));
    } else {
        log_debug("%s: cannot %s: %s", connection->peer, what, strerror(errno));
    }
}

/* Sends what is queued. Returns false when the turn ends with it; then *step is what the turn returns. */
static bool output_flush(struct connection *connection, bool *worked, enum connection_step *step)
{
    bool encrypted = connection->encrypts && tls_has_output(connection->tls);
    if (replies_empty(&connection->replies) && !encrypted) {
        return true;
    }
    size_t max_bytes = (size_t)connection->turn_bytes;
    enum replies_status status = connection->encrypts
                                     ? replies_encrypt(&connection->replies, connection->tls, max_bytes)
                                     : replies_send(&connection->replies, connection->fd, max_bytes);
    *worked = true;
    *step = status == REPLIES_BLOCKED ? STEP_OUTPUT : status == REPLIES_MORE ? STEP_AGAIN : STEP_CLOSED;
    if (status == REPLIES_FAILED) {
        failure_say(connection, "send");
    }
    return status == REPLIES_SENT;
}

/* Receives once. Returns false when there is nothing to parse; then *step is what the turn returns. */
static bool input_take(struct connection *connection, bool *worked, enum connection_step *step)
{
    ssize_t n = input_receive(connection);
    if (n > 0) {
        *worked = true;
        return true;
    }
    bool wait = n < 0 && (errno == EAGAIN || errno == EINTR);
    if (n < 0 && !wait) {
        failure_say(connection, "receive");
    }
    *step = wait ? STEP_INPUT : STEP_CLOSED;
    return false;
}

/* Whether the TLS session holds bytes that are not parsed yet: the socket does not become readable for them. */
static bool input_waits(const struct connection *connection)
{
    return connection->encrypts && tls_has_input(connection->tls);
}

enum connection_step connection_run(struct connection *connection, bool *worked)
{
    enum connection_step step = STEP_CLOSED;
    *worked = false;
    if (!output_flush(connection, worked, &step) || connection->closing) {
        return step;
    }
    if (connection->phase == PHASE_TLS) {
        return starttls_step(connection, worked);
    }
    if (!connection->pending && !input_take(connection, worked, &step)) {
        return step;
    }
    enum connection_parse parsed = input_parse(connection);
    connection->closing = parsed == PARSE_CLOSE;
    connection->pending = parsed == PARSE_AGAIN || parsed == PARSE_DELAYED;
    if (!output_flush(connection, worked, &step) || connection->closing) {
        return step;
    }
    if (parsed == PARSE_DELAYED) {
        return STEP_DELAYED;
    }
    return connection->pending || input_waits(connection) ? STEP_AGAIN : STEP_INPUT;
}
