/* SPDX-License-Identifier: MIT */
/*
 * Gathering: for how many requests of a connection the kernel waits before it wakes the worker, found out by trials.
 *
 * Some clients keep many requests in flight and send each by itself. Then the worker is woken for each request, and
 * the wake-up costs more than the work. So the worker may ask the kernel to wake it only when several requests have
 * come (SO_RCVLOWAT, socket(7), tcp(7)). The worker answers them all at once, so that the client has work while the
 * next ones gather.
 *
 * No request may wait for others that never come. Therefore:
 *  - A wait for more than one byte ends after GATHERING_WAIT_NS, whatever came. If such a wait runs out with some
 * bytes there, gathering pauses for some turns; if that happens several times, for 64 ms, and then for longer. If it
 * runs out with no bytes there, the next byte wakes the worker: a client that asks rarely is served at once, and an
 * idle connection costs nothing.
 *  - Gathering begins only after a turn that found two requests: it never delays a client with one request in flight.
 *  - How many requests a client has in flight is measured (a probe): the worker waits once for more than there can
 * be, and what has come when that wait runs out is all. The worker then gathers half of that, so that the other half
 *    keeps the client busy. If the probe's bytes came before the wait ran out, there are more in flight, and the
 * worker gathers three quarters of what came.
 *  - Gathering is kept only if it is no loss. A trial has parts of a few milliseconds, with and without gathering by
 *    turns. With gathering, the worker must serve about as many requests a second, in three quarters of the turns at
 *    most. (A client with n requests in flight then gets its answers as soon as before: Little's law.) The
 * connection's own rate may fall further than the worker's, because where there are more clients than processors, a
 * connection's share is up to chance for some milliseconds.
 *
 *   WATCHES ──two at once, many a second──► PROBES ──► TRIES ──► KEEPS ──after a while──► PROBES
 *      ▲                                       │         │         │
 *      └────────── a pause of the client, few in flight, no gain, waits that run out ──────┘
 *
 * A struct gathering is the state of one connection; only its worker uses it.
 */
#ifndef GHOSTBOX_MEMSERVER_GATHERING_H
#define GHOSTBOX_MEMSERVER_GATHERING_H

#include <stdbool.h>
#include <stdint.h>

/* The longest that a request waits for others. */
#define GATHERING_WAIT_NS UINT64_C(500000)
/* If a client sent nothing for so long, its connection begins again at WATCHES. */
#define GATHERING_GAP_NS UINT64_C(10000000)

enum gathering_phase { GATHERING_WATCHES, GATHERING_PROBES, GATHERING_TRIES, GATHERING_KEEPS };

/* One turn of the connection in which it received something. */
struct gathering_turn {
    uint64_t now_ns;
    uint32_t n_requests;
    uint32_t n_bytes;
    bool gathered;           /* the worker had waited for more than one byte */
    bool late;               /* that wait ran out before all of its bytes had come */
    bool may_try;            /* no other connection's trial is under way, nor one of waiting.h */
    uint64_t n_all_requests; /* requests of all connections of the worker since its start */
};

struct gathering_sum {
    uint64_t ns, requests, turns;
    uint64_t all_requests; /* requests of all connections of the worker */
};

struct gathering {
    bool always; /* gather without a trial, whatever the last verdict was (--gather always) */
    enum gathering_phase phase;
    uint64_t noted_ns;
    uint64_t noted_all_requests, began_all_requests;
    uint64_t began_ns;        /* when this phase, or this part of the trial, began */
    struct gathering_sum sum; /* since began_ns */
    uint32_t most;            /* most requests in one turn since began_ns, or since the last wait that ran out */
    uint32_t request_bytes;   /* bytes that a request takes, with its payload: moving average */

    uint32_t n_per_wait; /* requests that come in GATHERING_WAIT_NS */
    uint32_t n_gathered; /* requests to wait for */
    unsigned pause_turns, n_late, n_good;

    unsigned part;                 /* number of the trial's part */
    bool again;                    /* this is the second run of the trial: a machine may have been disturbed once */
    struct gathering_sum tried[2]; /* this trial, half of the one before, a quarter of the one before that … */
    uint64_t kept_ns;              /* how long the last yes holds; 0: the last verdict was no */
    uint64_t denied_ns;            /* how long the last no holds; 0 after a yes */
    uint64_t not_before_ns;        /* no trial begins before this time */
};

/*
 * Called after each turn in which something was received. Returns how many bytes are to wake the worker next; 1: any
 * byte.
 */
uint32_t gathering_note(struct gathering *gathering, const struct gathering_turn *turn);
/* Called when a wait ran out with no byte there: any byte is to wake the worker next. */
void gathering_rest(struct gathering *gathering, uint64_t now_ns);

/* Whether a probe or trial is under way. It counts as ended once its client has sent nothing for GATHERING_GAP_NS. */
static inline bool gathering_is_tried(const struct gathering *gathering, uint64_t now_ns)
{
    return (gathering->phase == GATHERING_PROBES || gathering->phase == GATHERING_TRIES) &&
           now_ns - gathering->noted_ns < GATHERING_GAP_NS;
}

#endif
