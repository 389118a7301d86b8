/* SPDX-License-Identifier: MIT */
#include "pulse.h"

#include "clock.h"
#include "donor.h"
#include "log.h"
#include "own_delay.h"
#include "pages.h"
#include "wire.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>

#define DECAY_NS 10000000000ull
/* A donor is slow when more than one in SLOW_SHARE answers of late was; and no more when it was less than half that.
 */
#define SLOW_SHARE      100u
#define SLOW_ANSWERS    16u /* fewer say nothing */
#define P99_START_NS    1000000u
#define P99_STEP_SHIFT  4
#define USER_TIMEOUT_MS 2000u
#define SHORT_BYTES     512u
#define STUCK_MS        1000u
#define IDLE_LOOKS      8u
#define TCP_SYN_SENT_   2 /* <netinet/tcp.h> has it, but is not to be had beside <linux/tcp.h> */

/* Nobody looks at it. Channels of one class have one thread. */
static uint8_t heartbeat_bytes[CHANNEL_CLASSES][PAGE_BYTES];

/* Up by 99 parts where an answer took longer, down by one where it did not: it rests where one in a hundred does. */
static void follow_p99(struct pulse *pulse, uint64_t took_ns)
{
    uint64_t p99_ns = pulse->p99_ns ? pulse->p99_ns : P99_START_NS;
    uint64_t part_ns = (p99_ns >> P99_STEP_SHIFT) / 100 + 1;

    pulse->p99_ns = took_ns > p99_ns ? p99_ns + 99 * part_ns : p99_ns - part_ns;
}

static void judge(struct donor *donor, uint64_t slow_ns)
{
    struct pulse *pulse = &donor->pulse;
    bool was_slow = atomic_load_explicit(&donor->slow, memory_order_relaxed);
    unsigned long long limit_ms = slow_ns / 1000000, smoothed_us = pulse->smoothed_ns / 1000;

    /* One answer alone is an accident. */
    if (!was_slow && pulse->n_answers >= SLOW_ANSWERS && pulse->n_slow >= 2 &&
        pulse->n_slow * SLOW_SHARE > pulse->n_answers) {
        atomic_store(&donor->slow, true);
        log_warning("donor %s is slow: %u of its last %u answers took more than %llu ms (%llu us in the middle); "
                    "it is used last",
                    donor->uri, pulse->n_slow, pulse->n_answers, limit_ms, smoothed_us);
    } else if (was_slow && pulse->n_slow * SLOW_SHARE * 2 < pulse->n_answers) {
        atomic_store(&donor->slow, false);
        log_info("donor %s is slow no more (%llu us in the middle)", donor->uri, smoothed_us);
    }
}

/* The part of the time that was not the donor's: only asked for where it would matter. */
static uint64_t without_own_delay(uint64_t took_ns, uint64_t slow_ns)
{
    uint64_t own_ns = took_ns > slow_ns ? own_delay_since(clock_ns() - took_ns) : 0;

    return took_ns > own_ns ? took_ns - own_ns : 0;
}

void pulse_sample(struct donor *donor, uint64_t took_ns, uint64_t slow_ns)
{
    struct pulse *pulse = &donor->pulse;

    took_ns = without_own_delay(took_ns, slow_ns);
    uint64_t smoothed_ns = pulse->smoothed_ns;

    pulse->smoothed_ns = smoothed_ns ? smoothed_ns - smoothed_ns / 8 + took_ns / 8 : took_ns;
    atomic_store_explicit(&donor->smoothed_us, (uint32_t)(pulse->smoothed_ns / 1000) + 1, memory_order_relaxed);
    follow_p99(pulse, took_ns);
    pulse->n_answers++;
    if (took_ns <= slow_ns)
        return;
    pulse->n_slow++;
    judge(donor, slow_ns);
}

static void decay(struct donor *donor, uint64_t now_ns, uint64_t slow_ns)
{
    struct pulse *pulse = &donor->pulse;

    if (now_ns >= pulse->decay_ns) {
        pulse->n_answers /= 2;
        pulse->n_slow /= 2;
        pulse->decay_ns = now_ns + DECAY_NS;
    }
    judge(donor, slow_ns);
}

void pulse_note_state(struct donor *donor, uint64_t now_ns)
{
    uint64_t up = 0;

    for (int class = 0; class < CHANNEL_CLASSES; class ++)
        if (atomic_load(&donor->states[class]) != CHANNEL_UP) {
            atomic_compare_exchange_strong(&donor->down_since_ns, &up, now_ns);
            return;
        }
    atomic_store(&donor->down_since_ns, 0);
}

void pulse_to_json(struct donor *donor, json_t *status)
{
    uint64_t since_ns = atomic_load(&donor->down_since_ns), now_ns = clock_ns();
    double down_s = since_ns && now_ns > since_ns ? (double)(now_ns - since_ns) / 1e9 : 0.0;

    char cause[CAUSE_BYTES];

    cause_get(donor, cause);
    json_object_set_new(status, "down_s", since_ns ? json_real(down_s) : json_null());
    json_object_set_new(status, "why", since_ns && *cause ? json_string(cause) : json_null());
    json_object_set_new(status, "smoothed_us", json_integer(atomic_load(&donor->smoothed_us)));
    json_object_set_new(status, "slow", json_boolean(atomic_load(&donor->slow)));
}

void pulse_guard(const struct channel *channel, int fd)
{
    uint32_t looks = channel->beat.patience ? channel->beat.patience : PATIENCE_LOOKS;
    unsigned int ms = (unsigned int)(looks * PULSE_NS / 1000000u);

    ms = ms > USER_TIMEOUT_MS ? ms : USER_TIMEOUT_MS;
    /* Fails on a Unix socket, where no network can go. */
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
}

/* Of a TCP socket. Returns false for others. */
static bool tcp_ask(const struct channel *channel, struct tcp_info *info)
{
    socklen_t length = sizeof(*info);

    return getsockopt(nbd_aio_get_fd(channel->nbd), IPPROTO_TCP, TCP_INFO, info, &length) == 0;
}

bool pulse_machine_silent(const struct channel *channel)
{
    struct tcp_info info = {0};

    return tcp_ask(channel, &info) && info.tcpi_state == TCP_SYN_SENT_;
}

/* Grows with each byte that comes. What libnbd has received of a long answer is known to the kernel only. */
static uint64_t heard(const struct channel *channel)
{
    struct tcp_info info = {0};

    if (channel->wire)
        return wire_received(channel->wire);
    uint64_t events = channel->n_chunks + channel->n_ended;

    return tcp_ask(channel, &info) ? events + info.tcpi_bytes_received : events;
}

/* It has answered, and for a second nothing of what there is to be sent was acknowledged: nor was a window probe. */
static bool is_stuck(const struct channel *channel)
{
    struct tcp_info info = {0};

    return tcp_ask(channel, &info) && info.tcpi_bytes_received > 0 &&
           (info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0) && info.tcpi_last_ack_recv >= STUCK_MS;
}

bool pulse_passes_no_page(const struct channel *channel)
{
    return channel->state == CHANNEL_UP && channel->barren && channel->carries && channel->n_carried == 0 &&
           (channel->beat.short_answered || is_stuck(channel));
}

bool pulse_negotiation_is_stuck(const struct channel *channel)
{
    return is_stuck(channel);
}

static void set_patience(struct channel *channel, uint64_t looks)
{
    struct beat *beat = &channel->beat;
    uint32_t before = beat->patience;

    looks = looks > PATIENCE_LOOKS ? looks : PATIENCE_LOOKS;
    beat->patience = looks < PATIENCE_MAX ? (uint32_t)looks : PATIENCE_MAX;
    if (before != beat->patience && channel->state == CHANNEL_UP)
        pulse_guard(channel, nbd_aio_get_fd(channel->nbd));
}

/* Too long without a word. */
static void give_up(struct channel *channel, int epoll_fd, uint32_t looks, const char *what)
{
    char why[96];
    double seconds = (double)(looks * PULSE_NS) / 1e9;

    snprintf(why, sizeof(why), "%s for %.1f s", what, seconds);
    set_patience(channel, 2ull * channel->beat.patience);
    channel_break(channel, epoll_fd, why);
}

static void look_at_connecting(struct channel *channel, int epoll_fd)
{
    struct beat *beat = &channel->beat;

    /* A machine that does not answer is asked anew soon, so that one that comes back is seen soon. */
    bool machine_silent = pulse_machine_silent(channel);
    uint32_t limit = machine_silent || pulse_negotiation_is_stuck(channel) ? PATIENCE_LOOKS : beat->patience;

    beat->silent++;
    if (beat->silent <= limit)
        return;
    if (machine_silent)
        channel_break(channel, epoll_fd, "its machine does not answer");
    else if (pulse_negotiation_is_stuck(channel))
        channel_break(channel, epoll_fd, PULSE_NO_PAGES);
    else
        give_up(channel, epoll_fd, beat->silent, "it did not negotiate");
}

static void ask(struct channel *channel, int epoll_fd, uint32_t bytes, uint64_t offset, bool carries)
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

static void send_heartbeat(struct channel *channel, int epoll_fd)
{
    uint64_t data_at = atomic_load_explicit(&channel->donor->data_at, memory_order_relaxed);

    /* It says nothing of pages that go the other way. */
    bool carries = data_at && channel->class != CHANNEL_WRITEBACK;

    ask(channel, epoll_fd, PAGE_BYTES, data_at ? data_at - 1 : 0, carries);
}

void pulse_ask_shortly(struct channel *channel, int epoll_fd)
{
    ask(channel, epoll_fd, SHORT_BYTES, 0, false);
}

/* What has come since the last look: the longest answer says how patient to be. */
static void learn(struct channel *channel, uint64_t slow_ns)
{
    struct beat *beat = &channel->beat;

    if (channel->n_ended != beat->ended) {
        uint64_t wanted = 2 * channel->longest_ns / PULSE_NS + 1;

        set_patience(channel, wanted > beat->patience / 2 ? wanted : beat->patience / 2);
    }
    channel->longest_ns = 0;
    if (beat->took_ns && channel->class == CHANNEL_DEMAND)
        pulse_sample(channel->donor, beat->took_ns, slow_ns);
    beat->took_ns = 0;
}

/* Barren no more: a request with a page was answered; or nobody has had one to ask for a while. */
static void look_at_barren(struct channel *channel)
{
    struct beat *beat = &channel->beat;

    beat->idle = channel->barren && !channel->carries ? beat->idle + 1 : 0;
    if (!channel->barren || (channel->n_carried == 0 && beat->idle < IDLE_LOOKS))
        return;
    channel->barren = false;
    beat->idle = 0;
    log_info("donor %s: connected again", channel->donor->uri);
    cause_clear(channel);
    channel_publish(channel);
}

static void give_up_waiting(struct channel *channel, int epoll_fd, uint32_t looks, const char *what)
{
    if (pulse_passes_no_page(channel))
        channel_break(channel, epoll_fd, PULSE_NO_PAGES);
    else
        give_up(channel, epoll_fd, looks, what);
}

static void look_at_up(struct channel *channel, int epoll_fd, uint64_t slow_ns)
{
    struct beat *beat = &channel->beat;
    uint64_t now_heard = heard(channel), now_ended = channel->n_ended;
    bool waiting = beat->pending && channel->in_flight > 0;

    learn(channel, slow_ns);
    beat->silent = waiting && now_heard == beat->heard ? beat->silent + 1 : 0;
    beat->stuck = waiting && now_ended == beat->ended ? beat->stuck + 1 : 0;
    beat->heard = now_heard;
    beat->ended = now_ended;
    look_at_barren(channel);
    if (beat->silent >= beat->patience) {
        if (channel->class == CHANNEL_DEMAND)
            pulse_sample(channel->donor, beat->silent * PULSE_NS, slow_ns);
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

void pulse_look(struct channel *channel, int epoll_fd, uint64_t now_ns, uint64_t slow_ns)
{
    struct donor *donor = channel->donor;

    if (channel->beat.patience == 0)
        channel->beat.patience = PATIENCE_LOOKS;
    if (channel->class == CHANNEL_DEMAND)
        decay(donor, now_ns, slow_ns);
    pulse_note_state(donor, now_ns); /* its channels are on two threads: what one overlooked */
    if (channel->state == CHANNEL_UP)
        look_at_up(channel, epoll_fd, slow_ns);
    else if (channel->state == CHANNEL_CONNECTING)
        look_at_connecting(channel, epoll_fd);
    if (channel->state == CHANNEL_UP || channel->fd >= 0)
        channel_poll(channel, epoll_fd);
}
