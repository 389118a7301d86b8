/* SPDX-License-Identifier: MIT */
/*
 * The plan of the rebuild: which copy is to be filled next, and which copies are superfluous.
 *
 * A copy is good if it is CURRENT on a donor that stays: the donor is not lost, removed or draining, and not away for
 * longer than --rebuild-after. Extents with fewer CURRENT copies (on donors that are not lost) than replicas come
 * first, then extents whose copies have to leave their donor, then copies written behind. If there is none of these,
 * donors with more room than others take copies over. If all donors with room hold a copy of the extent already,
 * another extent makes room first. (With two replicas one such step is always enough: pool_fits() says whether they
 * fit at all.)
 */
#include "rebuild/plan.h"

#include "base/clock.h"
#include "pool/slots.h"

#define LAG_NS 1000000000ull

struct look {
    struct copy copies[COPIES_MAX];
    bool good[COPIES_MAX];
    uint32_t n_good, n_current; /* good copies, and CURRENT copies on donors that are not lost; without backups */
    bool source;                /* a CURRENT copy can be read now */
    bool filling;
};

static struct look look_at(struct rebuild *rebuild, uint32_t extent)
{
    struct pool *pool = &rebuild->pager->pool;
    struct look look = {.n_good = 0};

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        struct copy copy = look.copies[i] = copy_load(&pool->extents[extent], i);
        const struct donor *donor = &pool->donors[copy.donor];

        look.filling = look.filling || copy.state == COPY_FILLING;
        if (copy.state != COPY_CURRENT)
            continue;
        look.source = look.source || donor_reachable(donor);
        if (donor->backup)
            continue;
        look.n_current += !atomic_load(&donor->lost);
        look.good[i] = pager_counts_on(rebuild->pager, donor);
        look.n_good += look.good[i];
    }
    return look;
}

/* Masks with a bit for each donor, made once for each plan. */
struct masks {
    uint64_t stay;         /* donors on which pager_counts_on() counts, without backups */
    uint64_t behind;       /* backups, which are written behind, that are not lost */
    bool behind_reachable; /* a backup can be written to now */
};

static struct masks masks_of(const struct pager *pager)
{
    struct masks masks = {.stay = 0};

    for (uint32_t i = 0; i < pager->pool.n_donors; i++) {
        const struct donor *donor = &pager->pool.donors[i];

        masks.stay |= (uint64_t)(!donor->backup && pager_counts_on(pager, donor)) << i;
        masks.behind |= (uint64_t)(donor->backup && !atomic_load(&donor->lost)) << i;
        masks.behind_reachable = masks.behind_reachable || (donor->backup && donor_reachable(donor));
    }
    return masks;
}

/*
 * Whether the extent has all copies that it should have, and no others: then tidy() and prepare() have nothing to do.
 * Nearly all extents are settled most of the time, and a pool of a TiB has 65,536 of them, so the cost of a plan is
 * that of this check.
 */
static bool settled(const struct pool *pool, uint32_t extent, const struct masks *masks)
{
    uint32_t n_good = 0;
    bool behind = false;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        struct copy copy = copy_load(&pool->extents[extent], i);

        if (copy.state == COPY_NONE)
            continue;
        if (copy.state != COPY_CURRENT)
            return false;
        bool good = masks->stay >> copy.donor & 1;

        if (!good && !(masks->behind >> copy.donor & 1))
            return false;
        n_good += good;
        behind = behind || !good;
    }
    return n_good == pool->replicas && (behind || !masks->behind_reachable);
}

/* Returns which share of the donor's slots would hold copies if it had so many more. */
static double share(const struct donor *donor, int more)
{
    return donor->n_slots ? ((double)atomic_load(&donor->used_slots) + more) / donor->n_slots : 2.0;
}

/*
 * Whether a copy may go to this donor: the donor must be apart from the donors of all good copies, except the copy
 * `except`, and must hold no copy of the extent in any state.
 */
static bool may_hold(struct rebuild *rebuild, const struct look *look, const struct donor *donor, uint32_t except)
{
    struct pool *pool = &rebuild->pager->pool;

    if (donor->backup || !donor_reachable(donor) || !pager_counts_on(rebuild->pager, donor))
        return false;
    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        const struct donor *other = &pool->donors[look->copies[i].donor];

        if (look->copies[i].state == COPY_NONE)
            continue;
        if (other == donor || (look->good[i] && i != except && !pool_apart(pool, donor, other)))
            return false;
    }
    return true;
}

/* Returns the least full donor that may hold a copy and has room, or NULL. */
static struct donor *choose_target(struct rebuild *rebuild, const struct look *look)
{
    struct pool *pool = &rebuild->pager->pool;
    struct donor *best = NULL;

    for (uint32_t i = 0; i < pool->n_donors; i++) {
        struct donor *donor = &pool->donors[i];

        if (may_hold(rebuild, look, donor, NOT_A_COPY) && slots_free(donor) > 0 &&
            (!best || share(donor, 1) < share(best, 1)))
            best = donor;
    }
    return best;
}

/*
 * Returns an empty place of the extent; if there is none, drops a STALE copy for it. NOT_A_COPY: there is no place.
 */
static uint32_t free_place(struct rebuild *rebuild, uint32_t extent, const struct look *look)
{
    for (uint32_t i = 0; i < COPIES_MAX; i++)
        if (look->copies[i].state == COPY_NONE)
            return i;
    for (uint32_t i = 0; i < COPIES_MAX; i++)
        if (look->copies[i].state == COPY_STALE && !rebuild->pager->pool.donors[look->copies[i].donor].backup) {
            copy_drop(&rebuild->pager->pool, extent, i);
            return i;
        }
    return NOT_A_COPY;
}

/* Claims a slot of the donor for a copy of the extent, and makes the job of filling it. */
static bool new_copy(struct rebuild *rebuild, uint32_t extent, const struct look *look, struct donor *donor,
                     struct fill_job *job)
{
    uint32_t place = free_place(rebuild, extent, look), slot;

    if (place == NOT_A_COPY || !slot_claim(donor, &slot))
        return false;
    *job = (struct fill_job){
        .extent = extent,
        .copy = place,
        .target = {.slot = slot, .donor = (uint16_t)(donor - rebuild->pager->pool.donors), .state = COPY_FILLING},
        .drop = NOT_A_COPY,
    };
    return true;
}

/* Makes the job of filling a STALE copy again where it is, if there is one on a donor that stays. */
static bool refill(struct rebuild *rebuild, uint32_t extent, const struct look *look, struct fill_job *job)
{
    struct pool *pool = &rebuild->pager->pool;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        const struct donor *donor = &pool->donors[look->copies[i].donor];
        bool apart = true;

        if (look->copies[i].state != COPY_STALE || donor->backup || !donor_reachable(donor) ||
            !pager_counts_on(rebuild->pager, donor))
            continue;
        for (uint32_t k = 0; k < COPIES_MAX; k++)
            apart = apart && (!look->good[k] || pool_apart(pool, donor, &pool->donors[look->copies[k].donor]));
        if (!apart)
            continue;
        *job = (struct fill_job){.extent = extent, .copy = i, .target = look->copies[i], .drop = NOT_A_COPY};
        job->target.state = COPY_FILLING;
        return true;
    }
    return false;
}

static bool has_copy_on(const struct pool *pool, uint32_t extent, uint32_t donor)
{
    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        struct copy copy = copy_load(&pool->extents[extent], i);

        if (copy.state == COPY_CURRENT && copy.donor == donor)
            return true;
    }
    return false;
}

/* Makes the job of moving a copy of some extent from one donor to another. */
static bool move_some(struct rebuild *rebuild, const struct donor *from, struct donor *to, struct fill_job *job)
{
    struct pool *pool = &rebuild->pager->pool;

    for (uint32_t k = 0; k < pool->n_extents; k++) {
        uint32_t extent = (rebuild->cursor + k) % pool->n_extents;

        if (!has_copy_on(pool, extent, (uint32_t)(from - pool->donors)))
            continue;
        struct look look = look_at(rebuild, extent);

        if (!look.source || look.filling)
            continue;
        for (uint32_t i = 0; i < COPIES_MAX; i++)
            if (look.good[i] && &pool->donors[look.copies[i].donor] == from && may_hold(rebuild, &look, to, i) &&
                new_copy(rebuild, extent, &look, to, job)) {
                job->drop = i;
                return true;
            }
    }
    return false;
}

/*
 * For an extent of which all donors with room hold copies already: makes the job of moving a copy of another extent
 * to one of these donors, so that a donor without a copy of this extent gets room.
 */
static bool make_room(struct rebuild *rebuild, const struct look *look, struct fill_job *job)
{
    struct pool *pool = &rebuild->pager->pool;

    for (uint32_t f = 0; f < pool->n_donors; f++)
        for (uint32_t t = 0; t < pool->n_donors; t++) {
            struct donor *from = &pool->donors[f], *to = &pool->donors[t];

            if (from != to && may_hold(rebuild, look, from, NOT_A_COPY) && slots_free(to) > 0 &&
                move_some(rebuild, from, to, job))
                return true;
        }
    return false;
}

/* Makes the job of filling the copy on the backup, unless the backup could not keep up in the last LAG_NS. */
static bool fill_backup(struct rebuild *rebuild, uint32_t extent, const struct look *look, struct fill_job *job)
{
    struct pool *pool = &rebuild->pager->pool;

    if (rebuild->lag_ns && clock_ns() < rebuild->lag_ns + LAG_NS)
        return false;
    for (uint32_t d = 0; d < pool->n_donors; d++) {
        struct donor *donor = &pool->donors[d];
        uint32_t have = NOT_A_COPY;

        if (!donor->backup || !donor_reachable(donor))
            continue;
        for (uint32_t i = 0; i < COPIES_MAX; i++)
            if (look->copies[i].state != COPY_NONE && look->copies[i].donor == d)
                have = i;
        if (have == NOT_A_COPY)
            return new_copy(rebuild, extent, look, donor, job);
        if (look->copies[have].state != COPY_STALE)
            return false;
        *job = (struct fill_job){.extent = extent, .copy = have, .target = look->copies[have], .drop = NOT_A_COPY};
        job->target.state = COPY_FILLING;
        return true;
    }
    return false;
}

/*
 * Returns the good copy to drop: one that is not apart from another good copy, or else the one on the fullest donor.
 */
static uint32_t most_superfluous(const struct pool *pool, const struct look *look)
{
    uint32_t best = NOT_A_COPY;
    double most = -1.0;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        const struct donor *donor = &pool->donors[look->copies[i].donor];
        double weight = share(donor, 0);

        if (!look->good[i])
            continue;
        for (uint32_t k = 0; k < COPIES_MAX; k++)
            if (k != i && look->good[k] && !pool_apart(pool, donor, &pool->donors[look->copies[k].donor]))
                weight += 10.0;
        if (weight > most) {
            most = weight;
            best = i;
        }
    }
    return best;
}

/* Drops superfluous copies, but never the last CURRENT copy. */
static void tidy(struct rebuild *rebuild, uint32_t extent)
{
    struct pager *pager = rebuild->pager;
    struct look look = look_at(rebuild, extent);
    bool enough = look.n_good >= pager->pool.replicas;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        const struct donor *donor = &pager->pool.donors[look.copies[i].donor];
        bool current = look.copies[i].state == COPY_CURRENT;

        if (look.copies[i].state == COPY_NONE || look.copies[i].state == COPY_FILLING)
            continue;
        if (atomic_load(&donor->lost) ? !current || look.n_current > 0 || look.source
                                      : !donor->backup && enough && !look.good[i])
            copy_drop(&rebuild->pager->pool, extent, i);
    }
    if (look.n_good > pager->pool.replicas && !look.filling)
        copy_drop(&rebuild->pager->pool, extent, most_superfluous(&pager->pool, &look));
}

/* What an extent may need: more copies; copies on other donors; or no more than a copy on the backup. */
enum urgency { LACKS_COPIES, HAS_TO_MOVE, COMPLETE, URGENCIES };

static enum urgency urgency_of(const struct rebuild *rebuild, const struct look *look)
{
    uint32_t replicas = rebuild->pager->pool.replicas;

    return look->n_good >= replicas ? COMPLETE : look->n_current < replicas ? LACKS_COPIES : HAS_TO_MOVE;
}

/* Whether the extent has enough copies once donors are back that have not been away for long. */
static bool waits_for_donors(struct rebuild *rebuild, const struct look *look)
{
    uint32_t n = look->n_good;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        const struct donor *donor = &rebuild->pager->pool.donors[look->copies[i].donor];

        n += look->copies[i].state == COPY_STALE && !donor->backup && pager_counts_on(rebuild->pager, donor);
    }
    return n >= rebuild->pager->pool.replicas;
}

static bool prepare(struct rebuild *rebuild, uint32_t extent, enum urgency urgency, struct fill_job *job)
{
    struct look look = look_at(rebuild, extent);

    if (look.filling || !look.source || urgency_of(rebuild, &look) != urgency)
        return false;
    if (urgency == COMPLETE)
        return fill_backup(rebuild, extent, &look, job);
    if (refill(rebuild, extent, &look, job))
        return true;
    if (waits_for_donors(rebuild, &look))
        return false;
    struct donor *target = choose_target(rebuild, &look);

    if (target)
        return new_copy(rebuild, extent, &look, target, job);
    bool may_move = rebuild->may_make_room;

    rebuild->may_make_room = false; /* make_room() looks at all extents, so it is called once in a plan */
    return may_move && make_room(rebuild, &look, job);
}

/* Makes the job of moving a copy from a donor to one that has much more room. */
static bool balance(struct rebuild *rebuild, struct fill_job *job)
{
    struct pool *pool = &rebuild->pager->pool;

    for (uint32_t f = 0; f < pool->n_donors; f++)
        for (uint32_t t = 0; t < pool->n_donors; t++) {
            struct donor *from = &pool->donors[f], *to = &pool->donors[t];

            if (from->backup || to->backup || share(from, -1) <= share(to, 1) + 0.02 || slots_free(to) == 0 ||
                !pager_counts_on(rebuild->pager, from))
                continue;
            if (move_some(rebuild, from, to, job))
                return true;
        }
    return false;
}

bool plan_room(struct rebuild *rebuild, uint32_t extent)
{
    struct look look = look_at(rebuild, extent);

    return choose_target(rebuild, &look) != NULL;
}

bool plan_empty_copy(struct rebuild *rebuild, uint32_t extent, struct copy *copy)
{
    struct look look = look_at(rebuild, extent);
    struct donor *donor = choose_target(rebuild, &look);
    uint32_t slot;

    if (!donor || !slot_claim(donor, &slot))
        return false;
    *copy = (struct copy){
        .slot = slot,
        .donor = (uint16_t)(donor - rebuild->pager->pool.donors),
        .state = COPY_CURRENT,
    };
    return true;
}

/* Lists the extents, in order, that have too few or too many copies, and drops their superfluous copies. */
static void find_unsettled(struct rebuild *rebuild)
{
    const struct pool *pool = &rebuild->pager->pool;
    struct masks masks = masks_of(rebuild->pager);

    rebuild->n_unsettled = 0;
    for (uint32_t extent = 0; extent < pool->n_extents; extent++) {
        if (settled(pool, extent, &masks))
            continue;
        tidy(rebuild, extent);
        rebuild->unsettled[rebuild->n_unsettled++] = extent;
    }
}

bool plan_next(struct rebuild *rebuild, struct fill_job *job)
{
    struct pool *pool = &rebuild->pager->pool;

    uint32_t first = 0; /* the first unsettled extent from the cursor on */

    rebuild->may_make_room = true;
    rebuild->cursor = (rebuild->cursor + 1) % pool->n_extents;
    find_unsettled(rebuild);
    while (first < rebuild->n_unsettled && rebuild->unsettled[first] < rebuild->cursor)
        first++;
    for (int urgency = LACKS_COPIES; urgency < URGENCIES; urgency++)
        for (uint32_t k = 0; k < rebuild->n_unsettled; k++)
            if (prepare(rebuild, rebuild->unsettled[(first + k) % rebuild->n_unsettled], (enum urgency)urgency, job))
                return true;
    return balance(rebuild, job);
}

uint32_t plan_left(struct rebuild *rebuild)
{
    uint32_t n = 0;

    for (uint32_t k = 0; k < rebuild->n_unsettled; k++) {
        struct look look = look_at(rebuild, rebuild->unsettled[k]);

        n += urgency_of(rebuild, &look) != COMPLETE;
    }
    return n;
}
