/* SPDX-License-Identifier: MIT */
#include "clock.h"
#include "donor.h"

#include "log.h"
#include "memserver/nbd/protocol.h"
#include "pages.h"
#include "wire.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define RETRY_NS    250000000ull
#define BREAK_TURNS 16

#define DONOR_ID_PREFIX ", donor " /* in an export's description: memserver/negotiate.c */

void channel_publish(struct channel *channel)
{
    bool in_doubt = channel->state == CHANNEL_UP && channel->barren;

    atomic_store(&channel->donor->states[channel->class], in_doubt ? CHANNEL_CONNECTING : (int)channel->state);
    pulse_note_state(channel->donor, clock_ns());
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

/* Runs inside libnbd, with the handle locked: no call into libnbd from here. */
static int on_completion(void *user_data, int *error)
{
    request_complete(user_data, *error);
    return 1; /* retire the command */
}

/*
 * The same goes for these two. libnbd lets a read succeed whose chunks overlap or do not cover it ("Libnbd does not
 * validate", nbd_pread_structured(3)); the rest would be what the buffer held before. So chunks must come in order,
 * up to the end, as in wire.c.
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
 * A command that libnbd refuses to queue never calls back, or (when the connection breaks while it is queued) has
 * already done so: the done list says which, or the mark of a heartbeat.
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

/* Nothing was queued: it will not appear on the done list. */
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
 * Before the handle is closed. libnbd closes the socket of a connection that has ended by itself: then it is in no
 * epoll any more, and its number may be another thread's by now.
 */
static void unpoll(struct channel *channel, int epoll_fd)
{
    if (channel->fd >= 0 && nbd_aio_get_fd(channel->nbd) == channel->fd)
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, channel->fd, NULL);
    channel->fd = -1;
    channel->polled = 0;
}

static bool wants_to_write(const struct channel *channel)
{
    if (channel->wire)
        return wire_blocked(channel->wire);
    return nbd_aio_get_direction(channel->nbd) & LIBNBD_AIO_DIRECTION_WRITE;
}

void channel_poll(struct channel *channel, int epoll_fd)
{
    if (channel->state == CHANNEL_DOWN)
        return;
    int fd = nbd_aio_get_fd(channel->nbd);
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
 * An attempt to connect failed: the next one goes to the next address, at once. When each had its turn, the name is
 * looked up anew, and the log is told.
 */
static void attempt_failed(struct channel *channel, const char *why)
{
    struct name *name = channel->donor->name;
    char next[ADDRESS_BYTES], unused[NAME_ERROR_BYTES], plain[CAUSE_BYTES];
    size_t length = strlen(channel->round);

    channel->retry_ns = clock_ns() + RETRY_NS;
    if (!name || !name_has_several(name)) {
        if (name)
            name_ask(name);
        channel->attempt = 0;
        cause_note(channel, why);
        return;
    }
    cause_make_plain(why, plain);
    snprintf(channel->round + length, sizeof(channel->round) - length, "%s%s: %s", length ? "; " : "",
             channel->address, plain);
    if (name_address(name, ++channel->attempt, next, unused)) {
        channel->retry_ns = 0;
        return;
    }
    channel->attempt = 0;
    name_ask(name);
    cause_note(channel, channel->round);
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
        cause_note(channel, why);
    } else if (channel->state == CHANNEL_UP) {
        log_warning("donor %s: connection lost: %s; trying again", donor->uri, why);
        cause_note_said(channel, why);
        channel->attempt = 0;
        channel->round[0] = '\0';
    } else {
        attempt_failed(channel, why);
    }
    unpoll(channel, epoll_fd);
    assert(channel->in_flight == 0 || channel->state == CHANNEL_CONNECTING);
    wire_destroy(channel->wire);
    channel->wire = NULL;
    nbd_close(channel->nbd);
    channel->nbd = NULL;
    set_state(channel, CHANNEL_DOWN);
    channel->beat.pending = false;
    channel->beat.silent = channel->beat.stuck = 0;
    channel->beat.heard = 0;
    channel->beat.ended = channel->n_ended;
    channel->longest_ns = 0;
}

/* The wire is of no use any more: whatever was under way has failed. */
static void wire_broke(struct channel *channel, int epoll_fd, int rc)
{
    /* Before the kernel says "timed out", what it sent was not acknowledged for a while. */
    const char *why = rc == -ETIMEDOUT && pulse_passes_no_page(channel) ? PULSE_NO_PAGES : strerror(-rc);

    wire_abort(channel->wire, ENOTCONN);
    go_down(channel, epoll_fd, why);
}

/*
 * libnbd drops a handle's requests without a word when it is closed, but answers them when their connection ends. So
 * that is what it is shown: both directions shut, which it notices at once.
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
    if (channel->in_flight == 0) /* or else the event that follows the shutdown does it */
        go_down(channel, epoll_fd, why);
}

void channel_go_direct(struct channel *channel)
{
    pulse_guard(channel, nbd_aio_get_fd(channel->nbd));
    if (channel->donor->libnbd_only || nbd_get_tls_negotiated(channel->nbd) == 1)
        return;
    /* Without memory for it libnbd goes on. */
    channel->wire =
        wire_create(nbd_aio_get_fd(channel->nbd), nbd_get_structured_replies_negotiated(channel->nbd) == 1);
}

void channel_flush(struct channel *channel, int epoll_fd)
{
    if (channel->state != CHANNEL_UP || !channel->wire || wire_blocked(channel->wire))
        return;
    int rc = wire_flush(channel->wire);

    if (rc < 0)
        wire_broke(channel, epoll_fd, rc);
}

void channel_receive(struct channel *channel, int epoll_fd)
{
    if (channel->state != CHANNEL_UP || !channel->wire || channel->in_flight == 0)
        return;
    int rc = wire_receive(channel->wire);

    if (rc < 0)
        wire_broke(channel, epoll_fd, rc);
}

/* What a server says who lends its memory, in its export's description. NULL: it does not say. */
static const char *donor_id(const char *identity)
{
    const char *id = strstr(identity, DONOR_ID_PREFIX);

    return id ? id + strlen(DONOR_ID_PREFIX) : NULL;
}

/* Whoever answers is not the one who lent us this memory: that one may still have it. */
static bool is_stranger(const struct channel *channel, const char *identity)
{
    const struct donor *donor = channel->donor;
    const char *expected = donor_id(donor->identity), *found = donor_id(identity);

    if (!expected) /* a server that does not say who it is: known by its address only */
        return donor->name && name_is_elsewhere(donor->name, channel->address);
    return !found || strcmp(expected, found) != 0;
}

enum memory { MEMORY_OURS, MEMORY_GONE, MEMORY_OF_OTHERS };

/* What the new connection leads to; with why, if a stranger answers. */
static enum memory look_at_memory(struct channel *channel, char why[CAUSE_BYTES])
{
    struct donor *donor = channel->donor;
    char *description = nbd_get_export_description(channel->nbd);
    const char *identity = description ? description : "", *id = donor_id(identity);
    int64_t bytes = nbd_get_size(channel->nbd);
    bool may_be_nameless = channel->inherited;
    enum memory memory = MEMORY_GONE;

    if ((*donor->identity || may_be_nameless) && strcmp(identity, donor->identity) == 0 && bytes >= 0 &&
        (uint64_t)bytes == donor->export_bytes) {
        memory = MEMORY_OURS;
    } else if (is_stranger(channel, identity)) {
        const char *expected = donor_id(donor->identity);

        memory = MEMORY_OF_OTHERS;
        snprintf(why, CAUSE_BYTES, "another server answers there: %s%s instead of %s%s", id ? "donor " : "",
                 id ? id : "one without a donor's id", expected ? "donor " : "", expected ? expected : "ours");
    } else {
        log_error("donor %s: it is back, but cannot show that it still holds our pages (identity '%s', was '%s'): "
                  "what it held is lost",
                  donor->uri, identity, donor->identity);
    }
    free(description);
    return memory;
}

static void connected(struct channel *channel, int epoll_fd)
{
    struct donor *donor = channel->donor;
    char why[CAUSE_BYTES];

    switch (look_at_memory(channel, why)) {
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
    channel_go_direct(channel);
    if (!channel->inherited && !channel->barren)
        log_info("donor %s: connected again", donor->uri);
    if (!channel->inherited)
        atomic_fetch_add(&donor->counters.reconnects, 1);
    channel->inherited = false;
    if (!channel->barren)
        cause_clear(channel);
    set_state(channel, CHANNEL_UP);
    if (channel->barren)
        pulse_ask_shortly(channel, epoll_fd);
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

/* After libnbd has worked on the connection; rc is what its call returned. */
static void look_at_state(struct channel *channel, int epoll_fd, int rc)
{
    /* Dead or closed: libnbd has called back for every request in flight. Nothing less may drop the handle. */
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

/* For the next attempt. False: there is none now; it is being looked up, or cannot be. */
static bool choose_address(struct channel *channel)
{
    struct name *name = channel->donor->name;
    char why[NAME_ERROR_BYTES], text[CAUSE_BYTES];

    if (!name || name_address(name, channel->attempt, channel->address, why))
        return true;
    channel->attempt = 0;
    if (name_address(name, 0, channel->address, why))
        return true;
    name_ask(name);
    if (*why) {
        snprintf(text, sizeof(text), "its name has no address: %s", why);
        cause_note(channel, text);
    }
    return false;
}

void channel_revive(struct channel *channel, int epoll_fd, uint64_t now_ns)
{
    if (channel->state != CHANNEL_DOWN || now_ns < channel->retry_ns || donor_gone(channel->donor))
        return;
    channel->retry_ns = now_ns + RETRY_NS;
    if (!choose_address(channel) || !channel_create(channel))
        return;
    set_state(channel, CHANNEL_CONNECTING);
    char uri[CHANNEL_URI_BYTES];

    if (nbd_aio_connect_uri(channel->nbd, channel_uri(channel, uri)) < 0)
        go_down(channel, epoll_fd, nbd_get_error());
    else /* a server that is quick may have answered all: then no event would ever come */
        look_at_state(channel, epoll_fd, 0);
}
