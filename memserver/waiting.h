/* SPDX-License-Identifier: MIT */
/*
 * How a worker waits for requests: it is thrifty or eager, and finds out by trials which of the two serves more.
 *
 * A thrifty worker sleeps at once. That costs least where requests come in batches, or where processors wake quickly.
 * An eager worker does one of two things:
 *  - If it may, it asks the kernel to keep processors out of idle states from which they wake slowly
 *    (/dev/cpu_dma_latency, Documentation/power/pm_qos_interface.rst). The worker still sleeps, so that other threads
 *    get its processor at once. On hardware this rules out the deep idle states; in a guest with the haltpoll driver
 *    the idle loop polls instead of halting. The kernel drops the wish when the process ends, however it ends.
 *  - If it may not, or if processors idle without a driver that would act on the wish (as in many virtual machines),
 * it polls its sockets for a while before it sleeps.
 *
 * A trial has parts of a few milliseconds while requests flow; the worker is thrifty in some of them and eager in the
 * others. It stays eager, for up to a quarter of a second until the next trial, only if that served a quarter more
 * requests a second; a third more where it polls; a tenth more if a client has set NBD_DEMAND_CONTEXT (a pager, one
 * of whose virtual CPUs waits for each answer). So the worker is thrifty where eagerness is of no use: the client is
 * the limit, requests are rare, or the machine wakes quickly. A pause of WAITING_GAP_MS without requests makes a
 * worker thrifty at once: an idle worker uses no processor time and asks the kernel for nothing.
 */
#ifndef GHOSTBOX_MEMSERVER_WAITING_H
#define GHOSTBOX_MEMSERVER_WAITING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define WAITING_GAP_MS 10

struct waiting {
    bool enabled;
    _Atomic bool eager;     /* the worker writes it; the control thread reads it, too */
    int latency_fd;         /* /dev/cpu_dma_latency; -1: not allowed, not wanted, or of no use */
    int32_t latency_us;     /* the wake-up latency that an eager worker asks for; -1: no driver would act on it */
    uint64_t spin_limit_ns; /* how long an eager worker polls if latency_fd is -1 */
    bool is_waited_for;     /* a client has set NBD_DEMAND_CONTEXT: a small gain is enough */

    unsigned part; /* number of the trial's part; the number of parts: there is a verdict */
    uint64_t part_began_ns;
    uint64_t part_began_requests;
    uint64_t noted_at_ns;
    uint64_t trial_requests[2], trial_ns[2]; /* sums over the thrifty and the eager parts */
    bool verdict;                            /* what the last trial found: eager is better */
    uint64_t settled_ns;                     /* how long the verdict holds; 0: there is none */

    uint64_t eager_began_ns;
    _Atomic uint64_t eager_ns; /* sum of the eager times that have ended; the control thread reads it */
};

/*
 * Begins thrifty. spin_us: how long to poll, 0: never. keep_awake: ask the kernel for quick wake-ups if that is
 * allowed. Without both the worker stays thrifty for ever.
 */
void waiting_open(struct waiting *waiting, unsigned spin_us, bool keep_awake);
void waiting_close(struct waiting *waiting);
/*
 * Called by the worker after each piece of work, as the other functions. n_requests is how many requests the worker
 * has served since its start. other_trial: gathering has a trial under way (gathering.h), so none begins here.
 */
void waiting_note(struct waiting *waiting, uint64_t now_ns, uint64_t n_requests, bool other_trial);
/* Whether no trial is under way or due. */
bool waiting_is_settled(const struct waiting *waiting, uint64_t now_ns);
/* Called when nothing came for WAITING_GAP_MS: the worker becomes thrifty. */
void waiting_rest(struct waiting *waiting, uint64_t now_ns);

/* How long the worker polls before it sleeps; 0: it does not. */
static inline uint64_t waiting_spin_ns(const struct waiting *waiting)
{
    return waiting->eager && waiting->latency_fd < 0 ? waiting->spin_limit_ns : 0;
}

#endif
