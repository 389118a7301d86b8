/* SPDX-License-Identifier: MIT */
#include "control/status_pool.h"

#include "base/clock.h"
#include "donor/liveness.h"
#include "rebuild/lost.h"

struct copy_counts {
    uint32_t current, filling, stale;
};

static void count_copy(struct copy_counts *counts, struct copy copy)
{
    counts->current += copy.state == COPY_CURRENT;
    counts->filling += copy.state == COPY_FILLING;
    counts->stale += copy.state == COPY_STALE;
}

/* Counts the copies on one donor, given by its index, or with DONORS_MAX on all donors. */
static struct copy_counts count_copies(const struct pool *pool, uint32_t donor)
{
    struct copy_counts counts = {0};

    for (uint32_t e = 0; e < pool->n_extents; e++)
        for (uint32_t i = 0; i < COPIES_MAX; i++) {
            struct copy copy = copy_load(&pool->extents[e], i);

            if (donor == DONORS_MAX || copy.donor == donor)
                count_copy(&counts, copy);
        }
    return counts;
}

/*
 * Returns how many copies are missing to have --replicas of each extent. Only current copies on donors that are not
 * lost count, without the backup.
 */
static uint32_t missing_copies(const struct pool *pool)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < pool->n_extents; e++) {
        uint32_t have = 0;

        for (uint32_t i = 0; i < COPIES_MAX; i++) {
            struct copy copy = copy_load(&pool->extents[e], i);
            const struct donor *donor = &pool->donors[copy.donor];

            have += copy.state == COPY_CURRENT && !donor->backup && !atomic_load(&donor->lost);
        }
        n += have < pool->replicas ? pool->replicas - have : 0;
    }
    return n;
}

/* Returns how many pages are poisoned, or are on lost donors only. */
static uint64_t count_lost(struct pager *pager)
{
    pager_lock(pager);
    uint64_t n = (uint64_t)pager->table.counts.poisoned;

    pager_unlock(pager);
    for (uint32_t e = 0; e < pager->pool.n_extents; e++)
        n += lost_pages(pager, e);
    return n;
}

/* Returns how many slots, on donors that take copies, hold none. */
static uint64_t spare_slots(const struct pool *pool)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < pool->n_donors; i++) {
        const struct donor *donor = &pool->donors[i];

        if (!donor->backup && !atomic_load(&donor->lost) && !atomic_load(&donor->removed) &&
            !atomic_load(&donor->draining))
            n += donor->n_slots - atomic_load(&donor->used_slots);
    }
    return n;
}

static bool all_up(struct donor *donor)
{
    for (int class = 0; class < CHANNEL_CLASSES; class ++)
        if (atomic_load(&donor->states[class]) != CHANNEL_UP)
            return false;
    return true;
}

/*
 * Whether a donor that drains is empty: no copy is on it, and the slots of the copies that were moved are trimmed,
 * unless the donor is away and cannot be told to.
 */
static bool is_empty(struct donor *donor)
{
    return atomic_load(&donor->used_slots) == 0 &&
           (atomic_load(&donor->n_given_up) == 0 || atomic_load(&donor->away_since_ns));
}

static const char *donor_state_name(struct donor *donor)
{
    if (atomic_load(&donor->removed))
        return "removed";
    if (atomic_load(&donor->lost))
        return "lost";
    if (atomic_load(&donor->draining))
        return is_empty(donor) ? "drained" : "draining";
    if (!all_up(donor))
        return "down";
    return atomic_load(&donor->slow) ? "slow" : "up";
}

static json_t *counters_to_json(struct donor *donor)
{
    struct donor_counters *c = &donor->counters;

    return json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "read_bytes",
        (json_int_t)atomic_load(&c->read_bytes), "written_bytes", (json_int_t)atomic_load(&c->written_bytes),
        "trimmed_bytes", (json_int_t)atomic_load(&c->trimmed_bytes), "reads", (json_int_t)atomic_load(&c->reads),
        "writes", (json_int_t)atomic_load(&c->writes), "trims", (json_int_t)atomic_load(&c->trims), "errors",
        (json_int_t)atomic_load(&c->errors), "checksum_errors", (json_int_t)atomic_load(&c->checksum_errors),
        "reconnects", (json_int_t)atomic_load(&c->reconnects), "writes_refused",
        (json_int_t)atomic_load(&c->writes_refused), "latency", histogram_to_json(&donor->latency));
}

/* For how long the donor has refused writes for want of room; null: it takes them. */
static json_t *refuses_to_json(const struct donor *donor)
{
    uint64_t now_ns = clock_ns(), since_ns = donor_full_since(donor, now_ns);

    if (!since_ns)
        return json_null();
    return json_real(now_ns > since_ns ? (double)(now_ns - since_ns) / 1e9 : 0.0);
}

static json_t *donor_to_json(struct pool *pool, uint32_t index)
{
    struct donor *donor = &pool->donors[index];
    struct copy_counts copies = count_copies(pool, index);
    json_t *json = json_pack(
        "{s:s, s:s, s:s, s:s, s:b, s:b, s:I, s:i, s:i, s:i, s:{s:i, s:i, s:i}, s:I}", "uri", donor->uri, "host",
        donor->host, "state", donor_state_name(donor), "identity", donor->identity, "backup", (int)donor->backup,
        "draining", (int)atomic_load(&donor->draining), "export_bytes", (json_int_t)donor->export_bytes, "extents",
        (int)atomic_load(&donor->used_slots), "slots", (int)donor->n_slots, "used_slots",
        (int)atomic_load(&donor->used_slots), "copies", "current", (int)copies.current, "filling",
        (int)copies.filling, "stale", (int)copies.stale, "lost_pages", (json_int_t)atomic_load(&donor->lost_pages));
    json_t *counters = counters_to_json(donor);

    json_object_update(json, counters);
    json_decref(counters);
    liveness_to_json(donor, json);
    json_object_set_new(json, "refuses_s", refuses_to_json(donor));
    return json;
}

json_t *donors_to_json(struct pager *pager)
{
    json_t *array = json_array();

    for (uint32_t i = 0; i < pager->pool.n_donors; i++)
        json_array_append_new(array, donor_to_json(&pager->pool, i));
    return array;
}

json_t *pool_to_json(struct pager *pager)
{
    const struct pool *pool = &pager->pool;
    struct rebuild_status *rebuild = &pager->rebuild_status;
    struct copy_counts copies = count_copies(pool, DONORS_MAX);

    return json_pack("{s:I, s:i, s:I, s:i, s:i, s:i, s:i, s:I, s:I, s:{s:b, s:i, s:I, s:I}}", "bytes",
                     (json_int_t)pool_bytes(pool), "extents", (int)pool->n_extents, "extent_bytes",
                     (json_int_t)pool->extent_bytes, "replicas", (int)pool->replicas, "missing_copies",
                     (int)missing_copies(pool), "stale_copies", (int)copies.stale, "filling_copies",
                     (int)copies.filling, "spare_bytes", (json_int_t)(spare_slots(pool) * pool->extent_bytes),
                     "lost_pages", (json_int_t)count_lost(pager), "rebuild", "active",
                     (int)atomic_load(&rebuild->active), "extents_left", (int)atomic_load(&rebuild->extents_left),
                     "done_bytes", (json_int_t)atomic_load(&rebuild->done_bytes), "bytes_per_s_limit",
                     (json_int_t)atomic_load(&rebuild->rate));
}

const char *pool_health(struct pager *pager)
{
    struct pool *pool = &pager->pool;
    struct copy_counts copies = count_copies(pool, DONORS_MAX);
    bool degraded = missing_copies(pool) > 0 || copies.filling > 0 || copies.stale > 0;

    if (count_lost(pager) > 0)
        return "lost";
    for (uint32_t i = 0; i < pool->n_donors; i++) {
        struct donor *donor = &pool->donors[i];
        bool leaves = atomic_load(&donor->draining) && !is_empty(donor);
        bool idle = atomic_load(&donor->removed) || atomic_load(&donor->draining);

        degraded = degraded || leaves || (!idle && (!all_up(donor) || atomic_load(&donor->slow))) ||
                   donor_full_since(donor, clock_ns());
    }
    return degraded ? "degraded" : "ok";
}
