/* SPDX-License-Identifier: MIT */
#include "control/donor_commands.h"

#include "donor/donor_open.h"
#include "log.h"
#include "pager.h"

#include <errno.h>

/* Returns the donor that args.uri names, or NULL with an error. Removed donors and the backup are not found. */
static struct donor *find(struct pager *pager, const json_t *args, struct control_error *err)
{
    const char *uri = json_string_value(json_object_get(args, "uri"));

    if (!uri) {
        control_fail(err, "invalid", "uri is missing");
        return NULL;
    }
    for (uint32_t i = 0; i < pager->pool.n_donors; i++) {
        struct donor *donor = &pager->pool.donors[i];

        if (strcmp(donor->uri, uri) == 0 && !atomic_load(&donor->removed) && !donor->backup)
            return donor;
    }
    control_fail(err, "not-found", "no donor %s", uri);
    return NULL;
}

/* Writes the donor to the state file and has the rebuild planned anew, after a command has changed the donor. */
static void changed(struct pager *pager, const struct donor *donor)
{
    state_set_donor(&pager->state, (uint32_t)(donor - pager->pool.donors), donor);
    atomic_store(&pager->rebuild_status.asked, true);
    pager_wake_evict(pager);
    pager_wake_fault(pager);
}

/* Returns the URI in args if a donor with it may be added, or NULL with an error. */
static const char *new_uri(struct pager *pager, const json_t *args, struct control_error *err)
{
    const char *uri = json_string_value(json_object_get(args, "uri"));

    const char *fault = donor_uri_fault(uri ? uri : "");

    if (fault) {
        control_fail(err, "invalid", "'%s' %s", uri ? uri : "", fault);
        return NULL;
    }
    if (pager->pool.n_donors == DONORS_MAX) {
        control_fail(err, "too-many", "at most %d donors, those included that were removed since the pager started",
                     DONORS_MAX);
        return NULL;
    }
    for (uint32_t i = 0; i < pager->pool.n_donors; i++)
        if (strcmp(pager->pool.donors[i].uri, uri) == 0 && !atomic_load(&pager->pool.donors[i].removed)) {
            control_fail(err, "exists", "donor %s is in use already", uri);
            return NULL;
        }
    return uri;
}

/* Returns the last donor that was removed and had this URI, or NULL. */
static const struct donor *removed_one(const struct pool *pool, const char *uri)
{
    for (uint32_t i = pool->n_donors; i-- > 0;)
        if (strcmp(pool->donors[i].uri, uri) == 0)
            return &pool->donors[i];
    return NULL;
}

/* Connects a new donor and adds it to the pool. Until n_donors counts it, no other thread looks at it. */
static json_t *take_in(struct pager *pager, const char *uri, struct control_error *err)
{
    struct pool *pool = &pager->pool;
    struct donor *donor = &pool->donors[pool->n_donors];
    char text[1024] = "no memory";

    *donor = (struct donor){.libnbd_only = pager->options->libnbd_only, .before = removed_one(pool, uri)};
    int rc = donor_open(donor, uri, text, sizeof(text));

    rc = rc < 0 ? rc : donor_cut(donor, pool->extent_bytes);
    if (rc == 0 && donor->n_slots == 0) {
        rc = -ENOSPC;
        snprintf(text, sizeof(text), "donor %s: its export has %llu bytes, less than one extent (%llu)", uri,
                 (unsigned long long)donor->export_bytes, (unsigned long long)pool->extent_bytes);
    }
    rc = rc < 0 ? rc : state_add_donor(&pager->state, donor, text, sizeof(text));
    if (rc < 0) {
        donor_close(donor);
        *donor = (struct donor){.uri = NULL};
        return control_fail(err, rc == -ENOSPC ? "too-small" : "unreachable", "%s", text);
    }
    atomic_fetch_add(&pool->n_donors, 1);
    log_info("donor %s: added, %llu MiB", uri, (unsigned long long)(donor->export_bytes >> 20));
    changed(pager, donor);
    return json_null();
}

json_t *donor_command_add(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;
    const char *uri = new_uri(pager, args, err);

    return uri ? take_in(pager, uri, err) : NULL;
}

/* Returns a mask with a bit for each donor that cannot take copies now, and for the one that leaves. */
static uint64_t without(const struct pool *pool, const struct donor *leaving)
{
    uint64_t mask = 0;

    for (uint32_t i = 0; i < pool->n_donors; i++) {
        const struct donor *donor = &pool->donors[i];
        bool gone = donor == leaving || atomic_load(&donor->lost) || atomic_load(&donor->removed) ||
                    atomic_load(&donor->draining) || atomic_load(&donor->away_since_ns);

        mask |= (uint64_t)gone << i;
    }
    return mask;
}

json_t *donor_command_drain(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;
    struct pool *pool = &pager->pool;
    struct donor *donor = find(pager, args, err);

    if (!donor)
        return NULL;
    uint64_t bytes = atomic_load(&donor->used_slots) * pool->extent_bytes;
    uint32_t fit = pool_fits(pool, without(pool, donor));

    if (bytes > 0 && fit < pool->n_extents)
        return control_fail(err, "too-small",
                            "donor %s: what it holds (%llu MiB) does not fit elsewhere: the pool has %llu MiB in %u "
                            "copies on distinct hosts, the other donors have room for %llu MiB of that",
                            donor->uri, (unsigned long long)(bytes >> 20),
                            (unsigned long long)(pool_bytes(pool) >> 20), pool->replicas,
                            (unsigned long long)(fit * pool->extent_bytes >> 20));
    atomic_store(&donor->draining, true);
    log_info("donor %s: draining, %llu MiB to move", donor->uri, (unsigned long long)(bytes >> 20));
    changed(pager, donor);
    return json_pack("{s:I}", "bytes", (json_int_t)bytes);
}

json_t *donor_command_keep(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;
    struct donor *donor = find(pager, args, err);

    if (!donor)
        return NULL;
    atomic_store(&donor->draining, false);
    log_info("donor %s: its draining was called off", donor->uri);
    changed(pager, donor);
    return json_null();
}

json_t *donor_command_lose(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;
    struct donor *donor = find(pager, args, err);

    if (!donor)
        return NULL;
    if (!atomic_load(&donor->away_since_ns) && !atomic_load(&donor->lost))
        return control_fail(err, "busy", "donor %s answers", donor->uri);
    log_error("donor %s: it does not have our export any more: the pages that it held are lost", donor->uri);
    atomic_store(&donor->lost, true);
    changed(pager, donor);
    return json_null();
}

json_t *donor_command_remove(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;
    struct donor *donor = find(pager, args, err);

    if (!donor)
        return NULL;
    /* `removed` is set before used_slots is read: the evict thread claims a slot first and reads `removed` then. */
    atomic_store(&donor->removed, true);
    uint64_t bytes = atomic_load(&donor->used_slots) * pager->pool.extent_bytes;

    if (bytes > 0) {
        atomic_store(&donor->removed, false);
        return control_fail(err, "busy", "donor %s still holds %llu MiB; drain it first", donor->uri,
                            (unsigned long long)(bytes >> 20));
    }
    log_info("donor %s: removed", donor->uri);
    changed(pager, donor);
    return json_null();
}

json_t *donor_command_set_rate(void *ctx, const json_t *args, struct control_error *err)
{
    struct pager *pager = ctx;
    const json_t *value = json_object_get(args, "bytes_per_s");
    json_int_t rate = json_integer_value(value);

    if (!json_is_integer(value) || rate < 0 || (rate > 0 && rate < PAGE_BYTES))
        return control_fail(err, "invalid", "bytes_per_s must be 0 (no limit) or a number of at least %u",
                            PAGE_BYTES);
    atomic_store(&pager->rebuild_status.rate, (uint64_t)rate);
    pager_wake_evict(pager);
    return json_null();
}
