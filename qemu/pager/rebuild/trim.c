/* SPDX-License-Identifier: MIT */
#include "rebuild/trim.h"

#include "base/fault_points.h"
#include "donor/channel.h"
#include "log.h"
#include "pool/slots.h"

#include <errno.h>

#define TRIM_MAX_BYTES (256ull << 20)

/* Sends the trim of the slot's next piece. Returns 0 or -errno. */
static int trim_send(struct rebuild *rebuild, struct donor *donor, struct slot_trim *trim)
{
    uint64_t extent_bytes = rebuild->pager->pool.extent_bytes, left = extent_bytes - trim->at;
    uint32_t bytes = (uint32_t)(left < TRIM_MAX_BYTES ? left : TRIM_MAX_BYTES);
    int rc = channel_trim(&donor->channels[CHANNEL_WRITEBACK], &trim->request, bytes,
                          trim->slot * extent_bytes + trim->at);

    trim->busy = rc == 0;
    return rc;
}

static void trim_done(struct request *request)
{
    struct rebuild *rebuild = request->owner;
    struct slot_trim *trim = (struct slot_trim *)request;
    struct donor *donor = &rebuild->pager->pool.donors[trim - rebuild->trims];

    trim->busy = false;
    if (trim->request.error) {
        log_debug("donor %s: trim failed", donor->uri);
        donor->slots[trim->slot] = SLOT_GIVEN_UP;
        return;
    }
    COUNT(donor->counters.trims, 1);
    COUNT(donor->counters.trimmed_bytes, trim->request.bytes);
    trim->at += trim->request.bytes;
    if (trim->at < rebuild->pager->pool.extent_bytes && trim_send(rebuild, donor, trim) == 0)
        return;
    FAULT_POINT(rebuild_trimmed);
    if (trim->at < rebuild->pager->pool.extent_bytes)
        donor->slots[trim->slot] = SLOT_GIVEN_UP;
    else
        slot_freed(donor, trim->slot);
    rebuild->asked = true;
}

static void trim_next(struct rebuild *rebuild, uint32_t index)
{
    struct donor *donor = &rebuild->pager->pool.donors[index];
    struct slot_trim *trim = &rebuild->trims[index];
    uint32_t slot = 0;

    while (slot < donor->n_slots && donor->slots[slot] != SLOT_GIVEN_UP)
        slot++;
    if (slot == donor->n_slots || rebuild->writes_touch(rebuild->writes, index, slot))
        return;
    *trim = (struct slot_trim){.request = {.done = trim_done, .owner = rebuild}, .slot = slot};
    int rc = trim_send(rebuild, donor, trim);

    if (rc == 0)
        donor->slots[slot] = SLOT_TRIMMING;
    else if (rc == -EOPNOTSUPP) /* the donor cannot trim: the slot keeps old bytes, which checksums would reveal */
        slot_freed(donor, slot);
}

void slots_service(struct rebuild *rebuild)
{
    struct pool *pool = &rebuild->pager->pool;

    for (uint32_t i = 0; i < pool->n_donors; i++)
        if (pool->donors[i].n_given_up > 0 && !rebuild->trims[i].busy && donor_reachable(&pool->donors[i]))
            trim_next(rebuild, i);
}
