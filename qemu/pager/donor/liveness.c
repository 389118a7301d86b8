/* SPDX-License-Identifier: MIT */
#include "donor/liveness.h"

#include "base/clock.h"
#include "donor/channel.h"
#include "donor/disconnect_reason.h"
#include "donor/latency.h"
#include "donor/patience.h"
#include "donor/tcp_state.h"
#include "log.h"
#include "page/pages.h"

#include <stdio.h>

#define IDLE_LOOKS 8u

void liveness_to_json(struct donor *donor, json_t *status)
{
    uint64_t since_ns = atomic_load(&donor->down_since_ns), now_ns = clock_ns();
    double down_s = since_ns && now_ns > since_ns ? (double)(now_ns - since_ns) / 1e9 : 0.0;

    char reason[REASON_BYTES];

    reason_get(donor, reason);
    json_object_set_new(status, "down_s", since_ns ? json_real(down_s) : json_null());
    json_object_set_new(status, "why", since_ns && *reason ? json_string(reason) : json_null());
    json_object_set_new(status, "smoothed_us", json_integer(atomic_load(&donor->smoothed_us)));
    json_object_set_new(status, "slow", json_boolean(atomic_load(&donor->slow)));
}

static void set_patience(struct channel *channel, uint64_t looks)
{
    struct beat *beat = &channel->beat;
    uint32_t before = beat->patience;

    looks = looks > PATIENCE_LOOKS ? looks : PATIENCE_LOOKS;
    beat->patience = looks < PATIENCE_MAX ? (uint32_t)looks : PATIENCE_MAX;
    if (before != beat->patience && channel->state == CHANNEL_UP)
        tcp_set_timeout(channel, channel_socket(channel));
}

/* Breaks the connection because the donor was silent for so many looks, and doubles the patience. */
static void give_up(struct channel *channel, int epoll_fd, uint32_t looks, const char *what)
{
    char why[96];
    double seconds = (double)(looks * LOOK_NS) / 1e9;

    snprintf(why, sizeof(why), "%s for %.1f s", what, seconds);
    set_patience(channel, 2ull * channel->beat.patience);
    channel_break(channel, epoll_fd, why);
}

static void look_at_connecting(struct channel *channel, int epoll_fd)
{
    struct beat *beat = &channel->beat;

    /* If the machine does not answer, a new attempt begins soon, so that its return is noticed soon. */
    bool machine_silent = tcp_machine_is_silent(channel);
    uint32_t limit = machine_silent || tcp_negotiation_is_stuck(channel) ? PATIENCE_LOOKS : beat->patience;

    beat->silent++;
    if (beat->silent <= limit)
        return;
    if (machine_silent)
        channel_break(channel, epoll_fd, "its machine does not answer");
    else if (tcp_negotiation_is_stuck(channel))
        channel_break(channel, epoll_fd, NO_PAGES_PASS);
    else
        give_up(channel, epoll_fd, beat->silent, "it did not negotiate");
}

static void send_heartbeat(struct channel *channel, int epoll_fd)
{
    uint64_t data_at = atomic_load_explicit(&channel->donor->data_at, memory_order_relaxed);

    /* A heartbeat is a read: its answer would not show that pages pass towards the donor, as write-back needs. */
    bool carries = data_at && channel->class != CHANNEL_WRITEBACK;

    channel_beat(channel, epoll_fd, PAGE_BYTES, data_at ? data_at - 1 : 0, carries);
}

/* Adapts the patience to the longest answer since the last look. */
static void learn(struct channel *channel, uint64_t slow_ns)
{
    struct beat *beat = &channel->beat;

    if (channel->n_ended != beat->ended) {
        uint64_t wanted = 2 * channel->longest_ns / LOOK_NS + 1;

        set_patience(channel, wanted > beat->patience / 2 ? wanted : beat->patience / 2);
    }
    channel->longest_ns = 0;
    if (beat->took_ns && channel->class == CHANNEL_DEMAND)
        latency_sample(channel->donor, beat->request.started_ns, beat->took_ns, slow_ns);
    beat->took_ns = 0;
}

/* Ends a channel's barren state once a request with a page was answered, or if none was sent for IDLE_LOOKS. */
static void look_at_barren(struct channel *channel)
{
    struct beat *beat = &channel->beat;

    beat->idle = channel->barren && !channel->carries ? beat->idle + 1 : 0;
    if (!channel->barren || (channel->n_carried == 0 && beat->idle < IDLE_LOOKS))
        return;
    channel->barren = false;
    beat->idle = 0;
    log_info("donor %s: connected again", channel->donor->uri);
    reason_clear(channel);
    channel_publish(channel);
}

static void give_up_waiting(struct channel *channel, int epoll_fd, uint32_t looks, const char *what)
{
    if (tcp_passes_no_page(channel))
        channel_break(channel, epoll_fd, NO_PAGES_PASS);
    else
        give_up(channel, epoll_fd, looks, what);
}

static void look_at_up(struct channel *channel, int epoll_fd, uint64_t slow_ns)
{
    struct beat *beat = &channel->beat;
    uint64_t now_heard = tcp_heard(channel), now_ended = channel->n_ended;
    bool waiting = beat->pending && channel->in_flight > 0;

    learn(channel, slow_ns);
    beat->silent = waiting && now_heard == beat->heard ? beat->silent + 1 : 0;
    beat->stuck = waiting && now_ended == beat->ended ? beat->stuck + 1 : 0;
    beat->heard = now_heard;
    beat->ended = now_ended;
    look_at_barren(channel);
    if (beat->silent >= beat->patience) {
        if (channel->class == CHANNEL_DEMAND)
            latency_sample(channel->donor, clock_ns() - beat->silent * LOOK_NS, beat->silent * LOOK_NS, slow_ns);
        give_up_waiting(channel, epoll_fd, beat->silent, "no answer");
        return;
    }
    if (beat->stuck >= PATIENCE_MAX) {
        give_up(channel, epoll_fd, beat->stuck, "no answer came to its end");
        return;
    }
    if (channel->in_flight == 0)
        send_heartbeat(channel, epoll_fd);
    beat->pending = channel->in_flight > 0;
}

void liveness_look(struct channel *channel, int epoll_fd, uint64_t now_ns, uint64_t slow_ns)
{
    struct donor *donor = channel->donor;

    if (channel->beat.patience == 0)
        channel->beat.patience = PATIENCE_LOOKS;
    if (channel->class == CHANNEL_DEMAND)
        latency_decay(donor, now_ns, slow_ns);
    /* Noted again, because two threads own the donor's channels, and one may have missed a change of the other. */
    donor_note_state(donor, now_ns);
    if (channel->state == CHANNEL_UP)
        look_at_up(channel, epoll_fd, slow_ns);
    else if (channel->state == CHANNEL_CONNECTING)
        look_at_connecting(channel, epoll_fd);
    if (channel->state == CHANNEL_UP || channel->fd >= 0)
        channel_poll(channel, epoll_fd);
}
