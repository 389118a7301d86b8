/* SPDX-License-Identifier: MIT */
#include "donor/channel.h"

#include "base/clock.h"
#include "common/nbd_protocol.h"
#include "donor/disconnect_reason.h"
#include "donor/names.h"
#include "donor/negotiate.h"
#include "donor/recognise.h"
#include "donor/tcp_state.h"
#include "donor/wire.h"
#include "log.h"
#include "page/pages.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define RETRY_NS    250000000ull
#define BREAK_TURNS 16
#define WHY_BYTES   1024
#define SHORT_BYTES 512u /* of a heartbeat whose answer is short */

/* The bytes of answers to heartbeats, which nothing reads. Channels of one class belong to one thread. */
static uint8_t heartbeat_bytes[CHANNEL_CLASSES][PAGE_BYTES];

void channel_init(struct channel *channel, struct donor *donor, enum channel_class class, enum channel_state state)
{
    *channel = (struct channel){.donor = donor, .class = class, .state = state, .fd = -1};
    channel->done_tail = &channel->done_head;
    atomic_store(&donor->states[class], (int)state);
}

void channel_publish(struct channel *channel)
{
    bool in_doubt = channel->state == CHANNEL_UP && channel->barren;

    atomic_store(&channel->donor->states[channel->class], in_doubt ? CHANNEL_CONNECTING : (int)channel->state);
    donor_note_state(channel->donor, clock_ns());
}

static void set_state(struct channel *channel, enum channel_state state)
{
    channel->state = state;
    channel->n_carried = 0;
    channel->carries = false;
    channel_publish(channel);
}

static void append_done(struct channel *channel, struct request *request)
{
    request->next = NULL;
    *channel->done_tail = request;
    channel->done_tail = &request->next;
}

void request_complete(struct request *request, int error)
{
    struct channel *channel = request->channel;

    request->error = error;
    request->done_ns = clock_ns();
    uint64_t took_ns = request->done_ns - request->started_ns;

    channel->in_flight--;
    channel->n_ended++;
    channel->longest_ns = channel->longest_ns > took_ns ? channel->longest_ns : took_ns;
    channel->n_carried += request->carries && !error;
    if (request != &channel->beat.request) {
        append_done(channel, request);
        return;
    }
    channel->beat.out = false;
    channel->beat.short_answered = channel->beat.short_answered || (!request->carries && error != ENOTCONN);
    channel->beat.took_ns = error || request->bytes < PAGE_BYTES ? 0 : took_ns;
}

/* Runs inside libnbd, which holds the handle's lock: it must not call libnbd. */
static int on_completion(void *user_data, int *error)
{
    request_complete(user_data, *error);
    return 1; /* retire the command */
}

/*
 * on_chunk() and on_read_completion() run inside libnbd, too. libnbd lets a read succeed whose chunks overlap or
 * do not cover it ("Libnbd does not validate", nbd_pread_structured(3)); the rest of the buffer would keep its
 * earlier contents. So chunks must come in order, up to the end, as in wire.c.
 */
static int on_chunk(void *user_data, const void *subbuf, size_t count, uint64_t offset, unsigned status, int *error)
{
    struct request *request = user_data;

    (void)subbuf;
    if (status == LIBNBD_READ_ERROR)
        return 0;
    if (offset != request->next_offset) {
        *error = EPROTO;
        return -1;
    }
    request->next_offset += count;
    request->channel->n_chunks++;
    return 0;
}

static int on_read_completion(void *user_data, int *error)
{
    struct request *request = user_data;

    request_complete(request, *error == 0 && request->next_offset != request->end_offset ? EPROTO : *error);
    return 1;
}

struct request *channel_done(struct channel *channel)
{
    struct request *request = channel->done_head;

    if (!request)
        return NULL;
    channel->done_head = request->next;
    if (!channel->done_head)
        channel->done_tail = &channel->done_head;
    return request;
}

static void begin(struct channel *channel, struct request *request, uint32_t bytes, bool carries)
{
    request->channel = channel;
    request->bytes = bytes;
    request->carries = carries;
    channel->carries = channel->carries || carries;
    request->error = 0;
    request->done_ns = 0;
    request->started_ns = clock_ns();
    channel->in_flight++;
}

static nbd_completion_callback callback(struct request *request)
{
    return (nbd_completion_callback){.callback = on_completion, .user_data = request};
}

/*
 * For a command that libnbd refuses to queue, the callback never runs, or has run already (when the connection broke
 * while the command was queued). The done list, or beat.out for a heartbeat, says which of the two happened.
 */
static int finish_begin(struct channel *channel, struct request *request, int64_t cookie)
{
    if (cookie >= 0)
        return 0;
    int error = nbd_get_errno();

    if (request == &channel->beat.request && !channel->beat.out)
        return 0;
    for (struct request *r = channel->done_head; r; r = r->next)
        if (r == request)
            return 0;
    channel->in_flight--;
    return error ? -error : -EIO;
}

/* Undoes the count of begin() if queueing failed, because then the request will not appear on the done list. */
static int queued(struct channel *channel, int rc)
{
    if (rc < 0)
        channel->in_flight--;
    return rc;
}

static int check_up(const struct channel *channel)
{
    return channel->state == CHANNEL_UP && !donor_gone(channel->donor) ? 0 : -ENOTCONN;
}

int channel_read(struct channel *channel, struct request *request, void *buf, uint32_t bytes, uint64_t offset)
{
    int rc = check_up(channel);

    if (rc < 0)
        return rc;
    begin(channel, request, bytes, request == &channel->beat.request ? channel->beat.carries : true);
    if (channel->wire)
        return queued(channel, wire_read(channel->wire, request, buf, bytes, offset));
    request->next_offset = offset;
    request->end_offset = offset + bytes;
    nbd_chunk_callback chunk = {.callback = on_chunk, .user_data = request};
    nbd_completion_callback completion = {.callback = on_read_completion, .user_data = request};

    return finish_begin(channel, request,
                        nbd_aio_pread_structured(channel->nbd, buf, bytes, offset, chunk, completion, 0));
}

int channel_write(struct channel *channel, struct request *request, const void *buf, uint32_t bytes, uint64_t offset)
{
    int rc = check_up(channel);

    if (rc < 0)
        return rc;
    begin(channel, request, bytes, true);
    if (channel->wire)
        return queued(channel, wire_write(channel->wire, request, buf, bytes, offset));
    return finish_begin(channel, request, nbd_aio_pwrite(channel->nbd, buf, bytes, offset, callback(request), 0));
}

int channel_trim(struct channel *channel, struct request *request, uint32_t bytes, uint64_t offset)
{
    int rc = check_up(channel);

    if (rc < 0)
        return rc;
    if (!channel->donor->can_trim)
        return -EOPNOTSUPP;
    begin(channel, request, bytes, false);
    if (channel->wire)
        return queued(channel, wire_trim(channel->wire, request, bytes, offset));
    return finish_begin(channel, request, nbd_aio_trim(channel->nbd, bytes, offset, callback(request), 0));
}

/*
 * Takes the socket out of the epoll, before the handle is closed. libnbd has closed the socket of a connection that
 * ended by itself: then it has left the epoll, and its number may belong to another thread's socket by now.
 */
static void unpoll(struct channel *channel, int epoll_fd)
{
    if (channel->fd >= 0 && channel_socket(channel) == channel->fd)
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, channel->fd, NULL);
    channel->fd = -1;
    channel->polled = 0;
}

static bool wants_to_write(const struct channel *channel)
{
    if (channel->wire)
        return wire_blocked(channel->wire);
    if (channel->secure)
        return secure_wants_output(channel->secure);
    return nbd_aio_get_direction(channel->nbd) & LIBNBD_AIO_DIRECTION_WRITE;
}

void channel_poll(struct channel *channel, int epoll_fd)
{
    if (channel->state == CHANNEL_DOWN)
        return;
    int fd = channel_socket(channel);
    uint32_t wanted = EPOLLIN | (wants_to_write(channel) ? (uint32_t)EPOLLOUT : 0);

    if (fd == channel->fd && wanted == channel->polled)
        return;
    struct epoll_event event = {.events = wanted, .data.ptr = channel};

    if (fd != channel->fd)
        unpoll(channel, epoll_fd);
    if (fd >= 0)
        epoll_ctl(epoll_fd, channel->fd < 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &event);
    channel->fd = fd;
    channel->polled = wanted;
}

/*
 * Called when an attempt to connect failed. The next attempt goes to the next address, at once. When all addresses
 * were tried, the name is looked up anew, and the reasons are logged.
 */
static void attempt_failed(struct channel *channel, const char *why)
{
    struct name *name = channel->donor->name;
    char next[ADDRESS_BYTES], unused[NAME_ERROR_BYTES], plain[REASON_BYTES];
    size_t length = strlen(channel->round);

    channel->retry_ns = clock_ns() + RETRY_NS;
    if (!name || !name_has_several(name)) {
        if (name)
            name_ask(name);
        channel->attempt = 0;
        reason_note(channel, why);
        return;
    }
    reason_make_plain(why, plain);
    snprintf(channel->round + length, sizeof(channel->round) - length, "%s%s: %s", length ? "; " : "",
             channel->address, plain);
    if (name_address(name, ++channel->attempt, next, unused)) {
        channel->retry_ns = 0;
        return;
    }
    channel->attempt = 0;
    name_ask(name);
    reason_note(channel, channel->round);
    channel->round[0] = '\0';
}

static void go_down(struct channel *channel, int epoll_fd, const char *why)
{
    struct donor *donor = channel->donor;

    channel->retry_ns = clock_ns() + RETRY_NS;

    bool was_barren = channel->barren, is_barren = channel->carries && channel->n_carried == 0;

    channel->barren = channel->state == CHANNEL_UP ? is_barren : was_barren;
    channel->beat.short_answered = false;
    if (atomic_load(&donor->removed)) {
        log_info("donor %s: connection closed", donor->uri);
    } else if (channel->state == CHANNEL_UP && was_barren && is_barren) {
        reason_note(channel, why);
    } else if (channel->state == CHANNEL_UP) {
        log_warning("donor %s: connection lost: %s; trying again", donor->uri, why);
        reason_note_said(channel, why);
        channel->attempt = 0;
        channel->round[0] = '\0';
    } else {
        attempt_failed(channel, why);
    }
    unpoll(channel, epoll_fd);
    assert(channel->in_flight == 0 || channel->state == CHANNEL_CONNECTING);
    wire_destroy(channel->wire);
    channel->wire = NULL;
    channel_drop(channel);
    set_state(channel, CHANNEL_DOWN);
    channel->beat.pending = false;
    channel->beat.silent = channel->beat.stuck = 0;
    channel->beat.heard = 0;
    channel->beat.ended = channel->n_ended;
    channel->longest_ns = 0;
}

/* Ends a connection on which wire.c failed with rc: all requests under way fail. */
static void wire_broke(struct channel *channel, int epoll_fd, int rc)
{
    /* The kernel reports ETIMEDOUT when data that it sent were not acknowledged for TCP_USER_TIMEOUT. */
    char why[REASON_BYTES];
    bool no_page = rc == -ETIMEDOUT && tcp_passes_no_page(channel);

    snprintf(why, sizeof(why), "%s", no_page ? NO_PAGES_PASS : wire_why(channel->wire, rc));
    wire_abort(channel->wire, ENOTCONN);
    go_down(channel, epoll_fd, why);
}

/*
 * libnbd runs no callbacks for the requests of a handle that is closed, but does when their connection ends. So both
 * directions of the socket are shut down, which libnbd notices at once.
 */
static void libnbd_break(struct channel *channel)
{
    shutdown(nbd_aio_get_fd(channel->nbd), SHUT_RDWR);
    for (int turn = 0; turn < BREAK_TURNS && channel->in_flight > 0; turn++) {
        if (nbd_aio_get_direction(channel->nbd) & LIBNBD_AIO_DIRECTION_READ)
            nbd_aio_notify_read(channel->nbd);
        else
            nbd_aio_notify_write(channel->nbd);
    }
}

void channel_break(struct channel *channel, int epoll_fd, const char *why)
{
    if (channel->wire)
        wire_abort(channel->wire, ENOTCONN);
    else if (channel->in_flight > 0)
        libnbd_break(channel);
    if (channel->in_flight == 0) /* otherwise channel_service() calls go_down() at the event of the shutdown */
        go_down(channel, epoll_fd, why);
}

int channel_go_direct(struct channel *channel)
{
    int fd = channel_socket(channel);

    tcp_set_timeout(channel, fd);
    if (!channel->secure && channel->donor->libnbd_only)
        return 0;
    channel->wire =
        wire_create(fd, channel->secure ? secure_tls(channel->secure) : NULL, channel_facts(channel).structured);
    /* If there is no memory for a wire, libnbd goes on moving the bytes; it cannot where there is TLS. */
    return channel->wire || !channel->secure ? 0 : -ENOMEM;
}

void channel_flush(struct channel *channel, int epoll_fd)
{
    if (channel->state != CHANNEL_UP || !channel->wire || wire_blocked(channel->wire))
        return;
    int rc = wire_flush(channel->wire);

    if (rc < 0)
        wire_broke(channel, epoll_fd, rc);
}

void channel_beat(struct channel *channel, int epoll_fd, uint32_t bytes, uint64_t offset, bool carries)
{
    struct beat *beat = &channel->beat;

    if (beat->out)
        return;
    beat->out = true;
    beat->carries = carries;
    if (channel_read(channel, &beat->request, heartbeat_bytes[channel->class], bytes, offset) < 0)
        beat->out = false;
    else
        channel_flush(channel, epoll_fd);
}

void channel_receive(struct channel *channel, int epoll_fd)
{
    if (channel->state != CHANNEL_UP || !channel->wire || channel->in_flight == 0)
        return;
    int rc = wire_receive(channel->wire);

    if (rc < 0)
        wire_broke(channel, epoll_fd, rc);
}

static void connected(struct channel *channel, int epoll_fd)
{
    struct donor *donor = channel->donor;
    char why[REASON_BYTES];

    switch (channel_memory(channel, why)) {
    case MEMORY_GONE:
        atomic_store(&donor->lost, true);
        return;
    case MEMORY_OF_OTHERS:
        go_down(channel, epoll_fd, why);
        return;
    case MEMORY_OURS:
        break;
    }
    if (donor->name)
        name_worked(donor->name, channel->address);
    channel->attempt = 0;
    channel->round[0] = '\0';
    if (channel_go_direct(channel) < 0) {
        go_down(channel, epoll_fd, NO_MEMORY);
        return;
    }
    if (!channel->inherited && !channel->barren)
        log_info("donor %s: connected again", donor->uri);
    if (!channel->inherited)
        atomic_fetch_add(&donor->counters.reconnects, 1);
    channel->inherited = false;
    if (!channel->barren)
        reason_clear(channel);
    set_state(channel, CHANNEL_UP);
    if (channel->barren)
        channel_beat(channel, epoll_fd, SHORT_BYTES, 0, false);
}

static void wire_service(struct channel *channel, int epoll_fd, uint32_t events)
{
    int rc = events & EPOLLOUT ? wire_flush(channel->wire) : 0;

    if (rc == 0 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        rc = wire_receive(channel->wire);
    if (rc < 0)
        wire_broke(channel, epoll_fd, rc);
    else
        channel_poll(channel, epoll_fd);
}

/* Goes on with a negotiation over TLS. */
static void secure_service(struct channel *channel, int epoll_fd)
{
    int rc = channel_step(channel);

    if (rc == 0)
        connected(channel, epoll_fd);
    else if (rc != -EAGAIN)
        go_down(channel, epoll_fd, secure_why(channel->secure));
    /* The connection of a donor whose memory is gone is of no use. */
    if (channel->state == CHANNEL_CONNECTING && donor_gone(channel->donor))
        go_down(channel, epoll_fd, "its memory is gone");
    channel_poll(channel, epoll_fd);
}

/* Follows the connection's state after a call of libnbd that returned rc. */
static void look_at_state(struct channel *channel, int epoll_fd, int rc)
{
    /* Once the handle is dead or closed, libnbd has run the callbacks of all requests: now it may be dropped. */
    if (nbd_aio_is_dead(channel->nbd) || nbd_aio_is_closed(channel->nbd)) {
        go_down(channel, epoll_fd, rc < 0 ? nbd_get_error() : "closed by the donor");
        return;
    }
    if (channel->state == CHANNEL_CONNECTING && !nbd_aio_is_connecting(channel->nbd))
        connected(channel, epoll_fd);
    channel_poll(channel, epoll_fd);
}

void channel_service(struct channel *channel, int epoll_fd, uint32_t events)
{
    if (channel->state == CHANNEL_DOWN)
        return;
    if (channel->wire) {
        wire_service(channel, epoll_fd, events);
        return;
    }
    if (channel->secure) {
        secure_service(channel, epoll_fd);
        return;
    }
    unsigned direction = nbd_aio_get_direction(channel->nbd);
    int rc = 0;

    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && (direction & LIBNBD_AIO_DIRECTION_READ))
        rc = nbd_aio_notify_read(channel->nbd);
    else if ((events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
        rc = nbd_aio_notify_write(channel->nbd);
    look_at_state(channel, epoll_fd, rc);
}

void channel_retire(struct channel *channel, int epoll_fd)
{
    if (atomic_load(&channel->donor->removed) && channel->state != CHANNEL_DOWN &&
        (channel->in_flight == 0 || channel->state == CHANNEL_CONNECTING))
        channel_break(channel, epoll_fd, "removed");
}

/*
 * Chooses the address for the next attempt. Returns false if none is known: the lookup is under way, or has failed.
 */
static bool choose_address(struct channel *channel)
{
    struct name *name = channel->donor->name;
    char why[NAME_ERROR_BYTES], text[REASON_BYTES];

    if (!name || name_address(name, channel->attempt, channel->address, why))
        return true;
    channel->attempt = 0;
    if (name_address(name, 0, channel->address, why))
        return true;
    name_ask(name);
    if (*why) {
        snprintf(text, sizeof(text), "its name has no address: %s", why);
        reason_note(channel, text);
    }
    return false;
}

void channel_revive(struct channel *channel, int epoll_fd, uint64_t now_ns)
{
    if (channel->state != CHANNEL_DOWN || now_ns < channel->retry_ns || donor_gone(channel->donor))
        return;
    channel->retry_ns = now_ns + RETRY_NS;
    char uri[CHANNEL_URI_BYTES], why[WHY_BYTES];

    if (!choose_address(channel))
        return;
    int rc = channel_create(channel, why, sizeof(why));

    if (rc == -EAGAIN) { /* its key file is being read: the next turn of the loop tries again */
        channel->retry_ns = 0;
        if (*why)
            reason_note(channel, why);
        return;
    }
    if (rc < 0) {
        attempt_failed(channel, why);
        return;
    }
    set_state(channel, CHANNEL_CONNECTING);
    if (channel->secure)
        secure_service(channel, epoll_fd);
    else if (nbd_aio_connect_uri(channel->nbd, channel_uri(channel, uri)) < 0)
        go_down(channel, epoll_fd, nbd_get_error());
    else /* a quick server may have answered everything by now: then no event would ever come */
        look_at_state(channel, epoll_fd, 0);
}
