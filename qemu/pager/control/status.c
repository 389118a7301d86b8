/* SPDX-License-Identifier: MIT */
/* The commands of the control socket. They run on the control thread. */
#include "control/status.h"

#include "base/clock.h"
#include "control/donor_commands.h"
#include "control/page_map.h"
#include "control/status_pool.h"
#include "log.h"
#include "page/reclaim_policy.h"
#include "pager.h"

#include <signal.h>
#include <unistd.h>

static json_int_t load(const _Atomic uint64_t *counter)
{
    return (json_int_t)atomic_load_explicit(counter, memory_order_relaxed);
}

static json_t *regions_to_json(struct pager *pager)
{
    json_t *array = json_array();

    pager_lock(pager);
    for (uint32_t i = 0; i < REGIONS_MAX; i++) {
        const struct region *r = &pager->regions[i];

        if (r->in_use)
            json_array_append_new(array,
                                  json_pack("{s:i, s:i, s:s, s:I, s:b, s:b}", "id", (int)r->id, "pid", (int)r->pid,
                                            "comm", r->comm, "length_bytes", (json_int_t)r->length, "connected",
                                            (int)(r->connected && !r->awaited), "leaving", (int)r->leaving));
    }
    pager_unlock(pager);
    return array;
}

static json_t *pages_to_json(struct pager *pager)
{
    pager_lock(pager);
    const struct page_table *t = &pager->table;
    struct page_counts c = t->counts;
    uint32_t resident = reclaim_mapped_count(t), inactive = t->inactive.count + t->spent.count,
             waiting = t->waiting.count;

    pager_unlock(pager);
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:i}", "total", (json_int_t)t->n_pages,
                     "present", (json_int_t)c.present, "resident", (json_int_t)resident, "inactive",
                     (json_int_t)inactive, "waiting", (json_int_t)waiting, "dirty", (json_int_t)c.dirty, "fetching",
                     (json_int_t)c.fetching, "writeback", (json_int_t)c.writeback, "on_donor", (json_int_t)c.on_donor,
                     "poisoned", (json_int_t)c.poisoned, "pinned", 0);
}

static json_t *faults_to_json(const struct pager_counters *c)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "missing_fetch", load(&c->missing_fetch), "missing_zero",
                     load(&c->missing_zero), "minor", load(&c->minor), "wp", load(&c->wp), "deferred",
                     load(&c->deferred), "zero_filled", load(&c->zero_filled), "fault_around",
                     load(&c->fault_around));
}

static json_t *evictions_to_json(const struct pager_counters *c)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "clean", load(&c->evicted_clean), "dirty", load(&c->evicted_dirty),
                     "zero", load(&c->evicted_zero), "zapped", load(&c->zapped), "second_chance",
                     load(&c->second_chance));
}

static json_t *counters_to_json(struct pager *pager)
{
    const struct pager_counters *c = &pager->counters;

    return json_pack("{s:o, s:{s:I, s:I, s:I}, s:o, s:{s:I, s:I}, s:{s:I, s:I}, s:{s:o, s:o, s:o, s:o, s:o}}",
                     "faults", faults_to_json(c), "readahead", "issued", load(&c->readahead_issued), "used",
                     load(&c->readahead_used), "wasted", load(&c->readahead_wasted), "evictions",
                     evictions_to_json(c), "discards", "requests", load(&c->discard_requests), "pages",
                     load(&c->discard_pages), "surprises", "foreign_pages", load(&c->foreign_pages), "vanished_pages",
                     load(&c->vanished_pages), "latency", "fetch", histogram_to_json(&pager->fetch_latency), "minor",
                     histogram_to_json(&pager->minor_latency), "zero", histogram_to_json(&pager->zero_latency),
                     "fetch_request", histogram_to_json(&pager->request_latency), "fetch_install",
                     histogram_to_json(&pager->install_latency));
}

static json_t *cmd_status(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;
    json_int_t uptime_s = (json_int_t)((clock_ns() - pager->started_ns) / 1000000000u);
    json_t *status = counters_to_json(pager);

    (void)args;
    (void)err;
    pager_lock(pager);
    json_int_t cache_bytes = (json_int_t)pager->cache_pages * PAGE_BYTES;

    pager_unlock(pager);
    json_t *head = json_pack(
        "{s:s, s:i, s:I, s:I, s:i, s:I, s:I, s:o, s:o, s:s, s:o, s:o, s:o, s:s?, s:s, s:o}", "version",
        GHOSTBOX_VERSION, "pid", (int)getpid(), "uptime_s", uptime_s, "cache_bytes", cache_bytes, "poll_us",
        (int)pager->options->poll_us, "extent_bytes", (json_int_t)pager->pool.extent_bytes, "pool_bytes",
        (json_int_t)pool_bytes(&pager->pool), "features", features_to_json(&pager->features), "hidden_features",
        features_hidden_to_json(&pager->features), "dirty_tracking", features_dirty_tracking(&pager->features),
        "regions", regions_to_json(pager), "pages", pages_to_json(pager), "donors", donors_to_json(pager),
        "state_file", pager->state.path, "health", pool_health(pager), "pool", pool_to_json(pager));

    json_object_set_new(head, "seccomp", json_boolean(atomic_load(&pager->sandboxed)));
    json_object_set_new(head, "hedges",
                        json_pack("{s:I, s:I}", "sent", load(&pager->counters.hedges_sent), "won",
                                  load(&pager->counters.hedges_won)));
    json_object_update(head, status);
    json_decref(status);
    return head;
}

static json_t *cmd_set_cache(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;
    const json_t *value = json_object_get(args, "cache_bytes");
    json_int_t bytes = json_integer_value(value);

    if (!json_is_integer(value) || bytes < (1 << 20) || bytes > (1ll << 46) || bytes % PAGE_BYTES)
        return control_fail(err, "invalid", "cache_bytes must be a multiple of %u of at least 1 MiB", PAGE_BYTES);
    pager_lock(pager);
    pager_set_cache(pager, (uint64_t)bytes);
    pager_unlock(pager);
    pager_wake_evict(pager);
    pager_wake_fault(pager);
    return json_pack("{s:I}", "cache_bytes", bytes);
}

static json_t *cmd_stop(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;
    const struct region *busy = NULL;

    pager_lock(pager);
    for (uint32_t i = 0; i < REGIONS_MAX && !busy; i++)
        if (pager->regions[i].in_use && !pager->regions[i].leaving)
            busy = &pager->regions[i];
    pager_unlock(pager);
    if (busy && !json_is_true(json_object_get(args, "force")))
        return control_fail(err, "busy", "process %d (%s) uses this memory and would freeze; end it first", busy->pid,
                            busy->comm);
    atomic_store(&pager->stopping, true);
    kill(getpid(), SIGUSR1); /* ends the main thread's wait */
    return json_null();
}

/* Ends this pager so that the next one can start. Meanwhile no page is lost, and only new faults wait. */
static json_t *cmd_hand_over(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;

    (void)args;
    if (!pager->state.header)
        return control_fail(err, "no-state", "this pager keeps no page map that another could go on with (--state)");
    log_info("handing over: ending once the writes under way are done");
    atomic_store(&pager->handing_over, true);
    pager_wake_evict(pager);
    return json_null();
}

const struct control_command pager_commands[] = {
    {"status", cmd_status},
    {"page-map", page_map_command},
    {"set-cache", cmd_set_cache},
    {"stop", cmd_stop},
    {"hand-over", cmd_hand_over},
    {"add-donor", donor_command_add},
    {"drain-donor", donor_command_drain},
    {"keep-donor", donor_command_keep},
    {"lose-donor", donor_command_lose},
    {"remove-donor", donor_command_remove},
    {"set-rebuild-rate", donor_command_set_rate},
    {NULL, NULL},
};
