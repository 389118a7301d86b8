/* SPDX-License-Identifier: MIT */
#include "memserver/gathering.h"

#include "common/log.h"

/* A part ends after PART_NS and PART_REQUESTS; if it lasts PART_MAX_NS, requests are too rare for gathering. */
#define PART_NS       UINT64_C(4000000)
#define PART_MAX_NS   UINT64_C(50000000)
#define PART_REQUESTS 32u
/*
 * Worth a trial: PER_WAIT_MIN requests in GATHERING_WAIT_NS, fewer than TURN_REQUESTS_MAX a turn, of small requests.
 */
#define PER_WAIT_MIN      5u
#define TURN_REQUESTS_MAX 8u
#define REQUEST_BYTES_MAX 8192u
/*
 * How many requests and bytes to wait for. The socket's buffer and the connection's can hold more than these bytes.
 */
#define GATHERED_MIN   2u
#define GATHERED_MAX   16u
#define GATHERED_BYTES (48u << 10)
#define PROBE_REQUESTS 32u
#define PROBE_BYTES    (56u << 10)
#define SMOOTHING      8u
/*
 * After a wait that ran out, gathering pauses for PAUSE_TURNS. GOOD_TURNS in time make the late ones forgotten;
 * LATE_MAX late ones end gathering.
 */
#define PAUSE_TURNS 4u
#define GOOD_TURNS  8u
#define LATE_MAX    3u
/* How long a verdict holds: if the next trial confirms it, twice as long. */
#define KEPT_MIN_NS   UINT64_C(128000000)
#define KEPT_MAX_NS   UINT64_C(1024000000)
#define DENIED_MIN_NS UINT64_C(64000000)
#define DENIED_MAX_NS UINT64_C(8192000000)
/*
 * What gathering must reach, in percent of what is served without it: at least RATE_PERCENT of the connection's
 * requests a second, ALL_RATE_PERCENT of the worker's, and at most TURNS_PERCENT of the turns a request.
 */
#define RATE_PERCENT     85u
#define ALL_RATE_PERCENT 95u
#define TURNS_PERCENT    75u

/* The parts of a trial. The first is not counted, because it still answers what was gathered before it. */
static const enum way {
    SINGLY,
    GATHERED
} trial_ways[] = {SINGLY, SINGLY, GATHERED, GATHERED, SINGLY, GATHERED, SINGLY, SINGLY, GATHERED};
#define TRIAL_PARTS (sizeof(trial_ways) / sizeof(trial_ways[0]))

static uint64_t doubled(uint64_t ns, uint64_t min_ns, uint64_t max_ns)
{
    return ns == 0 ? min_ns : ns * 2 < max_ns ? ns * 2 : max_ns;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static void phase_begin(struct gathering *gathering, enum gathering_phase phase, uint64_t now_ns)
{
    gathering->phase = phase;
    gathering->began_ns = now_ns;
    gathering->began_all_requests = gathering->noted_all_requests;
    gathering->sum = (struct gathering_sum){0};
    gathering->most = 0;
}

static void sum_halve(struct gathering_sum *sum)
{
    sum->ns /= 2;
    sum->requests /= 2;
    sum->turns /= 2;
    sum->all_requests /= 2;
}

static void sum_add(struct gathering_sum *sum, const struct gathering_sum *other)
{
    sum->ns += other->ns;
    sum->requests += other->requests;
    sum->turns += other->turns;
    sum->all_requests += other->all_requests;
}

static double per_s(uint64_t n, const struct gathering_sum *sum)
{
    return (double)n * 1e9 / (double)sum->ns;
}

static double per_turn(const struct gathering_sum *sum)
{
    return (double)sum->requests / (double)sum->turns;
}

static void deny(struct gathering *gathering, uint64_t now_ns)
{
    gathering->kept_ns = 0;
    gathering->denied_ns = gathering->always ? 0 : doubled(gathering->denied_ns, DENIED_MIN_NS, DENIED_MAX_NS);
    gathering->not_before_ns = now_ns + gathering->denied_ns;
    phase_begin(gathering, GATHERING_WATCHES, now_ns);
}

static void keep(struct gathering *gathering, uint64_t now_ns)
{
    gathering->kept_ns = doubled(gathering->kept_ns, KEPT_MIN_NS, KEPT_MAX_NS);
    gathering->denied_ns = 0;
    phase_begin(gathering, GATHERING_KEEPS, now_ns);
}

/* Begins a probe. The rate of requests in the phase that ends says how many come while a wait lasts. */
static void probe_begin(struct gathering *gathering, uint64_t now_ns)
{
    uint64_t n = gathering->sum.requests * GATHERING_WAIT_NS / (gathering->sum.ns + 1);
    gathering->n_per_wait = n < GATHERED_MAX && !gathering->always ? (uint32_t)n : GATHERED_MAX;
    phase_begin(gathering, GATHERING_PROBES, now_ns);
}

static bool is_worth_a_trial(const struct gathering *gathering)
{
    const struct gathering_sum *sum = &gathering->sum;
    return gathering->most >= GATHERED_MIN && sum->requests < TURN_REQUESTS_MAX * sum->turns &&
           sum->requests * GATHERING_WAIT_NS >= PER_WAIT_MIN * sum->ns &&
           gathering->request_bytes <= REQUEST_BYTES_MAX;
}

static void watch_note(struct gathering *gathering, const struct gathering_turn *turn)
{
    if (gathering->always && gathering->most >= GATHERED_MIN) {
        probe_begin(gathering, turn->now_ns);
        return;
    }
    if (gathering->sum.ns < PART_NS) {
        return;
    }
    if (turn->may_try && turn->now_ns >= gathering->not_before_ns && is_worth_a_trial(gathering)) {
        probe_begin(gathering, turn->now_ns);
    } else {
        phase_begin(gathering, GATHERING_WATCHES, turn->now_ns);
    }
}

/*
 * Sets how many requests to gather. A turn that is late has received all that the client has in flight; after a turn
 * in time there may be more.
 */
static void probe_note(struct gathering *gathering, const struct gathering_turn *turn)
{
    uint32_t n = smaller(turn->late ? turn->n_requests / 2 : turn->n_requests * 3 / 4, GATHERED_MAX);
    gathering->n_gathered = smaller(n, gathering->n_per_wait);
    if (gathering->n_gathered < GATHERED_MIN) {
        deny(gathering, turn->now_ns);
        return;
    }
    gathering->pause_turns = 0;
    gathering->n_late = 0;
    gathering->n_good = 0;
    gathering->part = 0;
    gathering->again = false;
    if (gathering->always) {
        keep(gathering, turn->now_ns);
        return;
    }
    sum_halve(&gathering->tried[SINGLY]);
    sum_halve(&gathering->tried[GATHERED]);
    phase_begin(gathering, GATHERING_TRIES, turn->now_ns);
}

static bool gathering_pays(const struct gathering *gathering)
{
    const struct gathering_sum *singly = &gathering->tried[SINGLY];
    const struct gathering_sum *gathered = &gathering->tried[GATHERED];
    double rate = per_s(gathered->requests, gathered) / per_s(singly->requests, singly);
    double all_rate = per_s(gathered->all_requests, gathered) / per_s(singly->all_requests, singly);
    double turns = per_turn(singly) / per_turn(gathered);
    bool pays = rate * 100 >= RATE_PERCENT && all_rate * 100 >= ALL_RATE_PERCENT && turns * 100 <= TURNS_PERCENT;
    log_debug(
        "waiting for %u requests: %.2f times the requests a second (all connections: %.2f times), in %.2f times "
        "the turns (%.1f requests a turn): %s",
        gathering->n_gathered, rate, all_rate, turns, per_turn(gathered), pays ? "kept" : "not kept");
    return pays;
}

static void part_note(struct gathering *gathering, const struct gathering_turn *turn)
{
    const struct gathering_sum *sum = &gathering->sum;
    if (sum->ns >= PART_MAX_NS) {
        deny(gathering, turn->now_ns);
        return;
    }
    if (sum->ns < PART_NS || sum->requests < PART_REQUESTS) {
        return;
    }
    if (gathering->part > 0) {
        sum_add(&gathering->tried[trial_ways[gathering->part]], sum);
    }
    if (++gathering->part < TRIAL_PARTS) {
        phase_begin(gathering, GATHERING_TRIES, turn->now_ns);
    } else if (gathering_pays(gathering)) {
        keep(gathering, turn->now_ns);
    } else if (!gathering->again) {
        gathering->again = true;
        gathering->part = 0;
        phase_begin(gathering, GATHERING_TRIES, turn->now_ns);
    } else {
        deny(gathering, turn->now_ns);
    }
}

static void kept_note(struct gathering *gathering, const struct gathering_turn *turn)
{
    if (gathering->sum.ns >= gathering->kept_ns && gathering->pause_turns == 0 && turn->may_try) {
        probe_begin(gathering, turn->now_ns);
    }
}

/*
 * Pauses gathering after a wait that ran out, until a turn finds two requests at once again. Returns false when waits
 * run out too often.
 */
static bool lateness_note(struct gathering *gathering, const struct gathering_turn *turn)
{
    if (turn->late) {
        gathering->pause_turns = PAUSE_TURNS;
        gathering->most = 0;
        gathering->n_good = 0;
        return ++gathering->n_late < LATE_MAX;
    }
    if (turn->gathered) {
        gathering->n_late = ++gathering->n_good < GOOD_TURNS ? gathering->n_late : 0;
    } else if (gathering->pause_turns > 1 || gathering->most >= GATHERED_MIN) {
        gathering->pause_turns -= gathering->pause_turns > 0 ? 1 : 0;
    }
    return true;
}

static void turn_count(struct gathering *gathering, const struct gathering_turn *turn)
{
    gathering->sum.ns = turn->now_ns - gathering->began_ns;
    gathering->sum.all_requests = turn->n_all_requests - gathering->began_all_requests;
    gathering->sum.requests += turn->n_requests;
    gathering->sum.turns++;
    gathering->most = turn->n_requests > gathering->most ? turn->n_requests : gathering->most;
    if (turn->n_requests > 0) {
        uint32_t bytes = turn->n_bytes / turn->n_requests;
        bool begins = turn->late || gathering->request_bytes == 0;
        gathering->request_bytes =
            begins ? bytes : (gathering->request_bytes * (SMOOTHING - 1) + bytes + SMOOTHING / 2) / SMOOTHING;
    }
}

static uint32_t mark_bytes(const struct gathering *gathering)
{
    if (gathering->request_bytes == 0 || gathering->request_bytes > REQUEST_BYTES_MAX) {
        return 1;
    }
    if (gathering->phase == GATHERING_PROBES) {
        return smaller(PROBE_REQUESTS * gathering->request_bytes, PROBE_BYTES);
    }
    bool gathers = gathering->phase == GATHERING_KEEPS ||
                   (gathering->phase == GATHERING_TRIES && trial_ways[gathering->part] == GATHERED);
    if (!gathers || gathering->pause_turns > 0) {
        return 1;
    }
    return smaller(gathering->n_gathered * gathering->request_bytes, GATHERED_BYTES);
}

uint32_t gathering_note(struct gathering *gathering, const struct gathering_turn *turn)
{
    uint64_t gap_ns = turn->now_ns - gathering->noted_ns;
    gathering->noted_ns = turn->now_ns;
    gathering->noted_all_requests = turn->n_all_requests;
    if (gap_ns >= GATHERING_GAP_NS) {
        phase_begin(gathering, GATHERING_WATCHES, turn->now_ns);
    }
    turn_count(gathering, turn);
    switch (gathering->phase) {
    case GATHERING_WATCHES:
        watch_note(gathering, turn);
        break;
    case GATHERING_PROBES:
        probe_note(gathering, turn);
        break;
    case GATHERING_TRIES:
    case GATHERING_KEEPS:
        if (!lateness_note(gathering, turn)) {
            deny(gathering, turn->now_ns);
        } else if (gathering->phase == GATHERING_TRIES) {
            part_note(gathering, turn);
        } else {
            kept_note(gathering, turn);
        }
    }
    return mark_bytes(gathering);
}

void gathering_rest(struct gathering *gathering, uint64_t now_ns)
{
    if (gathering->phase == GATHERING_PROBES) {
        phase_begin(gathering, GATHERING_WATCHES, now_ns);
    }
}
