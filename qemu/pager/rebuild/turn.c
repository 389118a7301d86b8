/* SPDX-License-Identifier: MIT */
#include "rebuild/turn.h"

#include "base/clock.h"
#include "rebuild/fill.h"
#include "rebuild/lost.h"
#include "rebuild/plan.h"
#include "rebuild/trim.h"

#include <errno.h>
#include <stdlib.h>

#define PLAN_NS 500000000ull

int rebuild_init(struct rebuild *rebuild)
{
    rebuild->unsettled = calloc(rebuild->pager->pool.n_extents, sizeof(*rebuild->unsettled));
    rebuild->asked = true;
    int rc = fill_init(rebuild);

    return rc == 0 && !rebuild->unsettled ? -ENOMEM : rc;
}

void rebuild_destroy(struct rebuild *rebuild)
{
    fill_destroy(rebuild);
    free(rebuild->unsettled);
}

/* Keeps away_since_ns of all donors, and asks for a plan when a donor goes or comes back. */
static void watch_donors(struct rebuild *rebuild)
{
    struct pool *pool = &rebuild->pager->pool;

    for (uint32_t i = 0; i < pool->n_donors; i++) {
        struct donor *donor = &pool->donors[i];
        bool away = !donor_reachable(donor), was_away = atomic_load(&donor->away_since_ns) != 0;

        if (away == was_away)
            continue;
        atomic_store(&donor->away_since_ns, away ? clock_ns() : 0);
        rebuild->asked = true;
    }
}

int rebuild_turn(struct rebuild *rebuild)
{
    struct fill_job job;
    uint64_t now = clock_ns();

    watch_donors(rebuild);
    fill_take_suspects(rebuild);
    slots_service(rebuild);
    if (rebuild->filling) {
        if (now >= rebuild->lost_ns)
            lost_service(rebuild);
        return fill_turn(rebuild);
    }
    if (now < rebuild->pause_ns)
        return (int)((rebuild->pause_ns - now) / 1000000 + 1);
    bool asked = atomic_exchange(&rebuild->pager->rebuild_status.asked, false) || rebuild->asked;

    if (!asked && now < rebuild->plan_ns)
        return -1;
    rebuild->asked = false;
    rebuild->plan_ns = now + PLAN_NS;
    lost_service(rebuild);
    bool found = plan_next(rebuild, &job);

    atomic_store(&rebuild->pager->rebuild_status.active, found);
    atomic_store(&rebuild->pager->rebuild_status.extents_left, plan_left(rebuild));
    if (!found)
        return -1;
    fill_start(rebuild, &job);
    return 0;
}
