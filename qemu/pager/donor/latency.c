/* SPDX-License-Identifier: MIT */
#include "donor/latency.h"

#include "base/own_delay.h"
#include "log.h"

#define DECAY_NS 10000000000ull
/*
 * A donor becomes slow when more than one in SLOW_SHARE of its recent answers is slow, and stops being slow when less
 * than half as many are. Fewer than SLOW_ANSWERS answers are too few to tell.
 */
#define SLOW_SHARE     100u
#define SLOW_ANSWERS   16u
#define P99_START_NS   1000000u
#define P99_STEP_SHIFT 4

/*
 * Follows the 99th percentile: the estimate goes up by 99 parts when an answer took longer, and down by one part when
 * it did not, so that it settles where one answer in a hundred takes longer.
 */
static void follow_p99(struct latency_estimate *estimate, uint64_t took_ns)
{
    uint64_t p99_ns = estimate->p99_ns ? estimate->p99_ns : P99_START_NS;
    uint64_t part_ns = (p99_ns >> P99_STEP_SHIFT) / 100 + 1;

    estimate->p99_ns = took_ns > p99_ns ? p99_ns + 99 * part_ns : p99_ns - part_ns;
}

static void judge(struct donor *donor, uint64_t slow_ns)
{
    struct latency_estimate *estimate = &donor->estimate;
    bool was_slow = atomic_load_explicit(&donor->slow, memory_order_relaxed);
    unsigned long long limit_ms = slow_ns / 1000000, smoothed_us = estimate->smoothed_ns / 1000;

    /* A single slow answer may be an accident. */
    if (!was_slow && estimate->n_answers >= SLOW_ANSWERS && estimate->n_slow >= 2 &&
        estimate->n_slow * SLOW_SHARE > estimate->n_answers) {
        atomic_store(&donor->slow, true);
        log_warning("donor %s is slow: %u of its last %u answers took more than %llu ms (%llu us on average); "
                    "it is used last",
                    donor->uri, estimate->n_slow, estimate->n_answers, limit_ms, smoothed_us);
    } else if (was_slow && estimate->n_slow * SLOW_SHARE * 2 < estimate->n_answers) {
        atomic_store(&donor->slow, false);
        log_info("donor %s is no longer slow (%llu us on average)", donor->uri, smoothed_us);
    }
}

/* Takes the thread's own delay off the latency. The kernel is asked for the delay only if the answer seems slow. */
static uint64_t without_own_delay(uint64_t began_ns, uint64_t took_ns, uint64_t slow_ns)
{
    uint64_t own_ns = took_ns > slow_ns ? own_delay_since(began_ns) : 0;

    return took_ns > own_ns ? took_ns - own_ns : 0;
}

void latency_sample(struct donor *donor, uint64_t began_ns, uint64_t took_ns, uint64_t slow_ns)
{
    struct latency_estimate *estimate = &donor->estimate;

    took_ns = without_own_delay(began_ns, took_ns, slow_ns);
    uint64_t smoothed_ns = estimate->smoothed_ns;

    estimate->smoothed_ns = smoothed_ns ? smoothed_ns - smoothed_ns / 8 + took_ns / 8 : took_ns;
    atomic_store_explicit(&donor->smoothed_us, (uint32_t)(estimate->smoothed_ns / 1000) + 1, memory_order_relaxed);
    follow_p99(estimate, took_ns);
    estimate->n_answers++;
    if (took_ns <= slow_ns)
        return;
    estimate->n_slow++;
    judge(donor, slow_ns);
}

void latency_decay(struct donor *donor, uint64_t now_ns, uint64_t slow_ns)
{
    struct latency_estimate *estimate = &donor->estimate;

    if (now_ns >= estimate->decay_ns) {
        estimate->n_answers /= 2;
        estimate->n_slow /= 2;
        estimate->decay_ns = now_ns + DECAY_NS;
    }
    judge(donor, slow_ns);
}
