/* SPDX-License-Identifier: MIT */
#include "memserver/waiting.h"

#include "common/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LATENCY_DEVICE "/dev/cpu_dma_latency"
#define IDLE_DRIVER    "/sys/devices/system/cpu/cpuidle/current_driver"
/*
 * Hardware wakes from its first idle state within 2 us. A guest's haltpoll driver polls only if 0 us are asked for.
 */
#define LATENCY_HARDWARE_US 2
#define LATENCY_GUEST_US    0
/* The kernel's PM_QOS_CPU_LATENCY_LAT_DEFAULT_VALUE: any latency will do. */
#define LATENCY_NONE_US INT32_C(2000000000)

/* A part ends after PART_NS and PART_REQUESTS; if it lasts PART_MAX_NS, requests are too rare for a trial. */
#define PART_NS       UINT64_C(4000000)
#define PART_REQUESTS 32u
#define PART_MAX_NS   UINT64_C(50000000)
/* How long a verdict holds: if the next trial confirms it, twice as long. */
#define SETTLED_MIN_NS UINT64_C(32000000)
#define SETTLED_MAX_NS UINT64_C(256000000)
#define GAP_NS         (WAITING_GAP_MS * UINT64_C(1000000))
/* How many times the requests a second an eager worker must serve. Polling costs more, so it has to bring more. */
#define GAIN_AWAKE      1.25
#define GAIN_POLLS      (4.0 / 3.0)
#define GAIN_WAITED_FOR 1.1

/* The parts of a trial. The first is not counted, because clients take a while to start, and sockets to fill. */
static const enum way { THRIFTY, EAGER } trial_ways[] = {THRIFTY, THRIFTY, EAGER, EAGER, THRIFTY};
#define TRIAL_PARTS (sizeof(trial_ways) / sizeof(trial_ways[0]))

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

/*
 * Returns the wake-up latency to ask for, or -1 if processors idle without a driver that would act on it
 * (cpuidle_idle_call(), kernel/sched/idle.c).
 */
static int32_t latency_wanted_us(void)
{
    char driver[32] = "none";
    FILE *file = fopen(IDLE_DRIVER, "re");
    if (file != NULL) {
        if (fgets(driver, sizeof(driver), file) == NULL) {
            driver[0] = '\0';
        }
        fclose(file);
    }
    if (starts_with(driver, "none")) {
        return -1;
    }
    return starts_with(driver, "haltpoll") ? LATENCY_GUEST_US : LATENCY_HARDWARE_US;
}

static void latency_open(struct waiting *waiting)
{
    waiting->latency_us = latency_wanted_us();
    if (waiting->latency_us < 0) {
        log_debug("no idle driver to ask for quick wake-ups: the worker polls instead, where that pays");
        return;
    }
    waiting->latency_fd = open(LATENCY_DEVICE, O_WRONLY | O_CLOEXEC);
    if (waiting->latency_fd < 0) {
        log_debug("cannot open " LATENCY_DEVICE ": %s: the worker polls instead, where that pays", strerror(errno));
    }
}

void waiting_open(struct waiting *waiting, unsigned spin_us, bool keep_awake)
{
    *waiting = (struct waiting){.latency_fd = -1, .spin_limit_ns = (uint64_t)spin_us * 1000};
    if (keep_awake) {
        latency_open(waiting);
    }
    waiting->enabled = waiting->latency_fd >= 0 || spin_us > 0;
}

void waiting_close(struct waiting *waiting)
{
    if (waiting->latency_fd >= 0) {
        close(waiting->latency_fd);
        waiting->latency_fd = -1;
    }
}

static void latency_ask(const struct waiting *waiting, int32_t latency_us)
{
    if (waiting->latency_fd >= 0 && write(waiting->latency_fd, &latency_us, sizeof(latency_us)) < 0) {
        log_warning(LATENCY_DEVICE ": %s", strerror(errno));
    }
}

static void eager_set(struct waiting *waiting, bool eager, uint64_t now_ns)
{
    if (waiting->eager == eager) {
        return;
    }
    waiting->eager = eager;
    latency_ask(waiting, eager ? waiting->latency_us : LATENCY_NONE_US);
    if (eager) {
        waiting->eager_began_ns = now_ns;
    } else {
        uint64_t total_ns = atomic_load_explicit(&waiting->eager_ns, memory_order_relaxed);
        atomic_store_explicit(&waiting->eager_ns, total_ns + now_ns - waiting->eager_began_ns, memory_order_relaxed);
    }
}

static void part_begin(struct waiting *waiting, unsigned part, uint64_t now_ns, uint64_t n_requests)
{
    waiting->part = part;
    waiting->part_began_ns = now_ns;
    waiting->part_began_requests = n_requests;
}

static void trial_begin(struct waiting *waiting, uint64_t now_ns, uint64_t n_requests)
{
    for (unsigned i = 0; i < 2; i++) {
        waiting->trial_requests[i] = 0;
        waiting->trial_ns[i] = 0;
    }
    eager_set(waiting, false, now_ns);
    part_begin(waiting, 0, now_ns, n_requests);
}

static void trial_settle(struct waiting *waiting, bool eager, uint64_t now_ns, uint64_t n_requests)
{
    bool confirmed = eager == waiting->verdict && waiting->settled_ns > 0;
    uint64_t doubled_ns = waiting->settled_ns * 2;
    waiting->settled_ns = !confirmed ? SETTLED_MIN_NS : doubled_ns < SETTLED_MAX_NS ? doubled_ns : SETTLED_MAX_NS;
    waiting->verdict = eager;
    eager_set(waiting, eager, now_ns);
    part_begin(waiting, TRIAL_PARTS, now_ns, n_requests);
}

static double trial_per_s(const struct waiting *waiting, enum way way)
{
    return (double)waiting->trial_requests[way] * 1e9 / (double)waiting->trial_ns[way];
}

static bool eager_pays(const struct waiting *waiting)
{
    double thrifty_per_s = trial_per_s(waiting, THRIFTY);
    double eager_per_s = trial_per_s(waiting, EAGER);
    double gain = waiting->latency_fd >= 0 ? GAIN_AWAKE : GAIN_POLLS;
    bool pays = eager_per_s >= thrifty_per_s * (waiting->is_waited_for ? GAIN_WAITED_FOR : gain);
    log_debug("requests a second: %.0f thrifty, %.0f eager: %s", thrifty_per_s, eager_per_s,
              pays ? "eager" : "thrifty");
    return pays;
}

static void part_end(struct waiting *waiting, uint64_t now_ns, uint64_t n_requests)
{
    if (waiting->part > 0) {
        enum way way = trial_ways[waiting->part];
        waiting->trial_requests[way] += n_requests - waiting->part_began_requests;
        waiting->trial_ns[way] += now_ns - waiting->part_began_ns;
    }
    unsigned next = waiting->part + 1;
    if (next == TRIAL_PARTS) {
        trial_settle(waiting, eager_pays(waiting), now_ns, n_requests);
    } else {
        eager_set(waiting, trial_ways[next] == EAGER, now_ns);
        part_begin(waiting, next, now_ns, n_requests);
    }
}

void waiting_note(struct waiting *waiting, uint64_t now_ns, uint64_t n_requests, bool other_trial)
{
    if (!waiting->enabled) {
        return;
    }
    uint64_t gap_ns = now_ns - waiting->noted_at_ns;
    uint64_t elapsed_ns = now_ns - waiting->part_began_ns;
    waiting->noted_at_ns = now_ns;
    if (gap_ns >= GAP_NS) {
        waiting->settled_ns = 0;
        trial_begin(waiting, now_ns, n_requests);
    } else if (waiting->part == TRIAL_PARTS) {
        if (elapsed_ns >= waiting->settled_ns && !other_trial) {
            trial_begin(waiting, now_ns, n_requests);
        }
    } else if (elapsed_ns >= PART_NS && n_requests - waiting->part_began_requests >= PART_REQUESTS) {
        part_end(waiting, now_ns, n_requests);
    } else if (elapsed_ns >= PART_MAX_NS) {
        trial_settle(waiting, false, now_ns, n_requests);
    }
}

bool waiting_is_settled(const struct waiting *waiting, uint64_t now_ns)
{
    return !waiting->enabled ||
           (waiting->part == TRIAL_PARTS && now_ns - waiting->part_began_ns < waiting->settled_ns);
}

void waiting_rest(struct waiting *waiting, uint64_t now_ns)
{
    eager_set(waiting, false, now_ns);
}
