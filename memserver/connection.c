/* SPDX-License-Identifier: MIT */
#include "memserver/connection.h"

#include "common/log.h"
#include "memserver/nbd/protocol.h"
#include "memserver/negotiate.h"
#include "memserver/transmit.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

/* A mapping of its own: its pages are taken when used and go back at the end, whatever malloc does. */
struct connection *connection_new(int fd, const char *peer, struct exports *exports, struct counters *counters)
{
    struct connection *connection =
        mmap(NULL, sizeof(*connection), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (connection == MAP_FAILED) {
        return NULL;
    }
    connection->fd = fd;
    connection->client.fd = fd;
    connection->exports = exports;
    connection->counters = counters;
    connection->window_bytes = CONNECTION_IN_BYTES;
    connection->mark_bytes = 1;
    connection->created_at_ms = clock_coarse_ms();
    snprintf(connection->peer, sizeof(connection->peer), "%s", peer);
    negotiate_greet(connection);
    return connection;
}

void connection_free(struct connection *connection)
{
    transmit_abandon(connection);
    export_detach(connection->exports, &connection->client);
    close(connection->fd);
    replies_drop(&connection->replies);
    munmap(connection, sizeof(*connection));
}

/* What is left over is less than one request or option: moving it to the front is cheap. */
static void input_compact(struct connection *connection)
{
    uint32_t left = connection_available(connection);
    if (connection->in_start > 0 && left > 0) {
        memmove(connection->in, connection->in + connection->in_start, left);
    }
    connection->in_start = 0;
    connection->in_end = left;
}

/* Receives once: first into the export's memory where a write waits for its payload, the rest into `in`. */
static ssize_t input_receive(struct connection *connection)
{
    input_compact(connection);
    uint32_t room = CONNECTION_IN_BYTES - connection->in_end;
    uint32_t window = room < connection->window_bytes ? room : connection->window_bytes;
    struct iovec iov[2];
    size_t direct = transmit_direct(connection, &iov[0]);
    if (direct == 0) {
        ssize_t n = recv(connection->fd, connection->in + connection->in_end, window, MSG_DONTWAIT);
        connection->in_end += n > 0 ? (uint32_t)n : 0;
        return n;
    }
    assert(connection->in_end == 0);
    iov[1] = (struct iovec){.iov_base = connection->in, .iov_len = window};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
    ssize_t n = recvmsg(connection->fd, &message, MSG_DONTWAIT);
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

/* errno says what. That a client goes is nothing to tell of, but that it had to be given up is. */
static void failure_say(const struct connection *connection, const char *what)
{
    if (errno == ETIMEDOUT) {
        log_info("%s: given up: it has vanished, or takes nothing of what it asked for (--peer-timeout)",
                 connection->peer);
    } else {
        log_debug("%s: cannot %s: %s", connection->peer, what, strerror(errno));
    }
}

/* Returns false when the turn ends here; *step says how. */
static bool output_flush(struct connection *connection, bool *worked, enum connection_step *step)
{
    if (replies_empty(&connection->replies)) {
        return true;
    }
    enum replies_status status = replies_send(&connection->replies, connection->fd);
    *worked = true;
    *step = status == REPLIES_BLOCKED ? STEP_OUTPUT : STEP_CLOSED;
    if (status == REPLIES_FAILED) {
        failure_say(connection, "send");
    }
    return status == REPLIES_SENT;
}

/* Returns false when there is nothing to parse; *step says why. */
static bool input_take(struct connection *connection, bool *worked, enum connection_step *step)
{
    ssize_t n = input_receive(connection);
    if (n > 0) {
        connection->n_received_bytes += connection->phase == PHASE_TRANSMISSION ? (uint64_t)n : 0;
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

enum connection_step connection_run(struct connection *connection, bool *worked)
{
    enum connection_step step = STEP_CLOSED;
    *worked = false;
    if (!output_flush(connection, worked, &step) || connection->closing) {
        return step;
    }
    if (!connection->pending && !input_take(connection, worked, &step)) {
        return step;
    }
    enum connection_parse parsed = input_parse(connection);
    connection->closing = parsed == PARSE_CLOSE;
    connection->pending = parsed == PARSE_AGAIN;
    if (!output_flush(connection, worked, &step) || connection->closing) {
        return step;
    }
    return connection->pending ? STEP_AGAIN : STEP_INPUT;
}
