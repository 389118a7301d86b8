/* SPDX-License-Identifier: MIT */
/*
 * Gathering: how much of a connection's requests to wait for before the worker is woken, found out by trying.
 *
 * Some clients keep many requests in flight and send each by itself. Then the server is woken for each, and its
 * wake-up costs more than its work. So it may ask the kernel to be woken only when several requests are there
 * (SO_RCVLOWAT, socket(7), tcp(7)). As it answers them all at once, the client has work meanwhile.
 *
 * What must not happen is that a request waits for others that never come. Therefore:
 *  - a wait for more than one byte ends after GATHERING_WAIT_NS, whatever came. One that ran out with something there
 *    turns gathering off for some turns; if that happens again and again, for 64 ms, then for longer. One that ran
 *    out with nothing there makes the next byte wake: who asks rarely is not kept waiting, and an idle connection
 *    costs nothing.
 *  - it begins only where a turn found two requests at once: a client with one in flight is left alone for ever.
 *  - how many requests a client has in flight is measured, by waiting once for more than it has: what is there when
 *    that wait runs out is all. Half of it is what is gathered (three quarters of what came in time: then there is
 *    more), so that the rest keeps the client busy.
 *  - it is kept only if it is no loss: parts of a few milliseconds are served with and without it by turns. With it,
 *    the worker must serve about as many requests a second (a client with n in flight then gets its answers as soon
 *    as before: Little's law), in three quarters of the turns at most. This connection's share of them may vary more:
 *    where clients are more than processors, it is up to chance for some milliseconds.
 *
 *   WATCHES ──two at once, many a second──► PROBES ──► TRIES ──► KEEPS ──after a while──► PROBES
 *      ▲                                       │         │         │
 *      └────────── a pause of the client, few in flight, no gain, waits that run out ──────┘
 *
 * The state of one connection; belongs to its worker.
 */
#ifndef GHOSTBOX_MEMSERVER_GATHERING_H
#define GHOSTBOX_MEMSERVER_GATHERING_H

#include <stdbool.h>
#include <stdint.h>

/* The longest that a request waits for others. */
#define GATHERING_WAIT_NS UINT64_C(500000)
/* A client that sent nothing for so long begins anew. */
#define GATHERING_GAP_NS UINT64_C(10000000)

enum gathering_phase { GATHERING_WATCHES, GATHERING_PROBES, GATHERING_TRIES, GATHERING_KEEPS };

/* One turn of the connection in which it received something. */
struct gathering_turn {
    uint64_t now_ns;
    uint32_t n_requests;
    uint32_t n_bytes;
    bool gathered;           /* it waited for more than a byte */
    bool late;               /* and got less than that */
    bool may_try;            /* nobody else's trial is under way */
    uint64_t n_all_requests; /* of all connections of the worker, so far */
};

struct gathering_sum {
    uint64_t ns, requests, turns;
    uint64_t all_requests; /* of all connections of the worker */
};

struct gathering {
    bool always; /* with no trial, and whatever the last verdict was */
    enum gathering_phase phase;
    uint64_t noted_ns;
    uint64_t noted_all_requests, began_all_requests;
    uint64_t began_ns;        /* this phase, or this part of the trial */
    struct gathering_sum sum; /* since then */
    uint32_t most;            /* requests in one turn; since then, or since the last wait that ran out */
    uint32_t request_bytes;   /* as they come, payload included; smoothed */

    uint32_t n_per_wait; /* requests that come in GATHERING_WAIT_NS */
    uint32_t n_gathered; /* requests to wait for */
    unsigned pause_turns, n_late, n_good;

    unsigned part;                 /* of the trial */
    bool again;                    /* it is gone through twice before it is a no: a machine has hiccups */
    struct gathering_sum tried[2]; /* this trial, half of the one before, a quarter of the one before that … */
    uint64_t kept_ns;              /* how long the verdict holds; 0: it was no */
    uint64_t denied_ns;            /* how long the last no held */
    uint64_t not_before_ns;        /* no trial */
};

/* After each turn. Returns how many bytes are to wake the worker next; 1: any. */
uint32_t gathering_note(struct gathering *gathering, const struct gathering_turn *turn);
/* A wait ran out with nothing there: any byte is to wake the worker next. */
void gathering_rest(struct gathering *gathering, uint64_t now_ns);

/* A trial that its client left does not count. */
static inline bool gathering_is_tried(const struct gathering *gathering, uint64_t now_ns)
{
    return (gathering->phase == GATHERING_PROBES || gathering->phase == GATHERING_TRIES) &&
           now_ns - gathering->noted_ns < GATHERING_GAP_NS;
}

#endif
