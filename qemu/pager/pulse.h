/* SPDX-License-Identifier: MIT */
/*
 * Whether a donor is alive, and how fast it is.
 *
 * Every PULSE_NS each channel is looked at. One with nothing under way is asked for a page (a heartbeat); one on
 * which something was under way at `patience` looks in a row without a byte coming is broken and made anew. So with
 * the patience that it begins with, a donor that died is noticed within 4 × PULSE_NS. Looks are counted, not time: a
 * pager that was stopped itself breaks nothing.
 *
 * A donor may be slow and not dead. The patience doubles each time that it was not enough, so that the slowest one
 * answers in the end; while it answers, twice its longest answer is waited for; once it is quick again the patience
 * goes back.
 *
 * Short messages may pass where pages do not: each end may believe in an MTU that the way between them has not. So
 * heartbeats carry a page where the donor is known to hold one (a hole is answered in a few bytes), and negotiations
 * carry as much the other way (channel.c). A connection that broke before a single request with a page was answered,
 * though some were sent, is barren: it is made anew and used, but the donor counts as away until such a request is
 * answered, or, where there is none, a heartbeat.
 *
 * Its latency is that of demand reads and of heartbeats on their connection, all on the fault thread; without the
 * time for which that thread waited for a processor (own_delay.h).
 */
#ifndef GHOSTBOX_PULSE_H
#define GHOSTBOX_PULSE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define PULSE_NS       450000000ull
#define PATIENCE_LOOKS 3u
#define PATIENCE_MAX   133u /* 60 s */

/* Of a donor, besides what others see of it (struct donor). Fault thread only. */
struct pulse {
    uint64_t smoothed_ns;       /* latency: an eighth of each answer, the rest of what there was; 0: none yet */
    uint64_t p99_ns;            /* about the 99th percentile of the last thousand answers; 0: none yet */
    uint32_t n_answers, n_slow; /* of late: halved every DECAY_NS */
    uint32_t n_late;            /* requests under way that another donor was asked for, too: hedge.c */
    uint64_t decay_ns;          /* when to halve them next */
};

struct channel;
struct donor;

#define PULSE_NO_PAGES "short requests are answered, pages are not: is the MTU the same on the whole way?"

/* Up and barren; was sent pages' requests once more, and answered none; but something short, or it acks nothing. */
bool pulse_passes_no_page(const struct channel *channel);
/* Connecting: its greeting came, and what we said since is not acknowledged. */
bool pulse_negotiation_is_stuck(const struct channel *channel);
/* Asks something whose answer is short: a heartbeat. */
void pulse_ask_shortly(struct channel *channel, int epoll_fd);
/* An answer to a demand read took this long. On the fault thread. */
void pulse_sample(struct donor *donor, uint64_t took_ns, uint64_t slow_ns);
/* A connection came or broke: keeps down_since_ns. */
void pulse_note_state(struct donor *donor, uint64_t now_ns);
/*
 * The look, on the channel's thread. Requests may appear on the done list, as the connection may break. slow_ns:
 * answers that take longer make a donor slow.
 */
void pulse_look(struct channel *channel, int epoll_fd, uint64_t now_ns, uint64_t slow_ns);
/* Adds what is known to a donor's status: "down_s" and "why" (null while up), "smoothed_us", "slow". */
void pulse_to_json(struct donor *donor, json_t *status);
/* Connecting, and the machine has not answered a thing. */
bool pulse_machine_silent(const struct channel *channel);
/* A new connection: the kernel gives it up when what we sent is not acknowledged, too. */
void pulse_guard(const struct channel *channel, int fd);

#endif
