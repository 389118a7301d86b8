/* SPDX-License-Identifier: MIT */
/*
 * How a worker waits for requests: thrifty or eager, and which of the two is found out by trying.
 *
 * Thrifty: it sleeps at once. That costs least where requests come in batches, or where processors wake quickly.
 * Eager, in one of two ways:
 *  - where it may, it asks the kernel not to put processors into a sleep that they wake from slowly
 *    (/dev/cpu_dma_latency, Documentation/power/pm_qos_interface.rst). It sleeps all the same, so that others get its
 *    processor at once. On hardware that rules out the deep idle states; in a guest with the haltpoll driver the idle
 *    loop polls instead of halting. The kernel takes the request back when the process ends, however it ends.
 *  - else, and where processors idle without a driver that would heed it (as in many virtual machines), it tries its
 *    sockets again for a while before it sleeps.
 *
 * The trial: while requests flow, parts of a few milliseconds are waited through in the one and the other way by
 * turns. Eager is kept, for up to a quarter of a second until the next trial, only if it served a quarter more
 * requests a second, a third more where it polls, a tenth more for a client that says that somebody waits for each
 * reply (NBD_DEMAND_CONTEXT: a pager, whose virtual CPU does). Whatever makes it useless here (a client that is the
 * limit, requests that are rare, a machine that wakes quickly) turns it off. A pause of GAP ends it at once: an idle
 * worker uses no processor and asks for nothing.
 */
#ifndef GHOSTBOX_MEMSERVER_WAITING_H
#define GHOSTBOX_MEMSERVER_WAITING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define WAITING_GAP_MS 10

struct waiting {
    bool enabled;
    _Atomic bool eager;     /* written by the worker, read by the control thread, too */
    int latency_fd;         /* -1: not allowed, or not wanted */
    int32_t latency_us;     /* what is asked for while eager */
    uint64_t spin_limit_ns; /* where latency_fd is -1 */
    bool is_waited_for;     /* somebody stands still until we answer: a little is worth it */

    unsigned part; /* of the trial; behind the last one: settled */
    uint64_t part_began_ns;
    uint64_t part_began_requests;
    uint64_t noted_at_ns;
    uint64_t trial_requests[2], trial_ns[2]; /* thrifty, eager */
    bool verdict;                            /* of the last trial: eager */
    uint64_t settled_ns;                     /* how long it holds; 0: there is none */

    uint64_t eager_began_ns;
    _Atomic uint64_t eager_ns; /* for the control thread: how long it was eager so far */
};

/* spin_us 0: never spins. keep_awake: try to open /dev/cpu_dma_latency. With neither it stays thrifty. */
void waiting_open(struct waiting *waiting, unsigned spin_us, bool keep_awake);
void waiting_close(struct waiting *waiting);
/* After each piece of work: n_requests is how many the worker has served so far. No trial begins while another one
 * is under way. */
void waiting_note(struct waiting *waiting, uint64_t now_ns, uint64_t n_requests, bool other_trial);
/* No trial is under way or due. */
bool waiting_is_settled(const struct waiting *waiting, uint64_t now_ns);
/* Nothing came for WAITING_GAP_MS. */
void waiting_rest(struct waiting *waiting, uint64_t now_ns);

/* How long to try again before sleeping. */
static inline uint64_t waiting_spin_ns(const struct waiting *waiting)
{
    return waiting->eager && waiting->latency_fd < 0 ? waiting->spin_limit_ns : 0;
}

#endif
