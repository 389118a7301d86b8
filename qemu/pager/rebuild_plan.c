/* SPDX-License-Identifier: MIT */
/*
 * Which copy is to be filled next, and which are superfluous.
 *
 * A copy is good if it is CURRENT on a donor that stays: not lost, not draining, not away for longer than
 * --rebuild-after. Extents with fewer good copies than replicas come first, then those whose copies have to leave a
 * draining donor, then copies written behind; with nothing else to do, what donors that came later can take over.
 * Where the only donors with room hold a copy already, another extent makes room first. (With two replicas one such
 * step is always enough: pool_fits() says when they fit at all.)
 */
#include "clock.h"
#include "evict.h"

#define LAG_NS 1000000000ull

struct look {
    struct copy copies[COPIES_MAX];
    bool good[COPIES_MAX];
    uint32_t n_good, n_current; /* without those written behind; n_current: on donors that are not lost */
    bool source;                /* some CURRENT copy can be read now */
    bool filling;
};

/* While the connection of an earlier one is open, trims of its slots may still reach the same export. */
static bool is_fenced(const struct donor *donor)
{
    return !donor->before || atomic_load(&donor->before->states[CHANNEL_WRITEBACK]) == CHANNEL_DOWN;
}

bool donor_reachable(const struct donor *donor)
{
    return !atomic_load(&donor->lost) && !atomic_load(&donor->removed) && is_fenced(donor) &&
           atomic_load(&donor->states[CHANNEL_WRITEBACK]) == CHANNEL_UP;
}

bool donor_stays(const struct pager *pager, const struct donor *donor)
{
    uint64_t away_ns = atomic_load(&donor->away_since_ns);
    uint64_t limit_ns = (uint64_t)pager->options->rebuild_after_s * 1000000000u;

    return !atomic_load(&donor->lost) && !atomic_load(&donor->removed) && !atomic_load(&donor->draining) &&
           (away_ns == 0 || clock_ns() < away_ns + limit_ns);
}

static struct look look_at(struct evict_loop *loop, uint32_t extent)
{
    struct pool *pool = &loop->pager->pool;
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
        look.good[i] = donor_stays(loop->pager, donor);
        look.n_good += look.good[i];
    }
    return look;
}

/* A bit for each donor, as of one plan. */
struct masks {
    uint64_t stay;         /* donor_stays(), those that are written behind left out */
    uint64_t behind;       /* written behind, and not lost */
    bool behind_reachable; /* one of those can be filled */
};

static struct masks masks_of(const struct pager *pager)
{
    struct masks masks = {.stay = 0};

    for (uint32_t i = 0; i < pager->pool.n_donors; i++) {
        const struct donor *donor = &pager->pool.donors[i];

        masks.stay |= (uint64_t)(!donor->backup && donor_stays(pager, donor)) << i;
        masks.behind |= (uint64_t)(donor->backup && !atomic_load(&donor->lost)) << i;
        masks.behind_reachable = masks.behind_reachable || (donor->backup && donor_reachable(donor));
    }
    return masks;
}

/*
 * All that it should have, and nothing else: tidy() and prepare() would find nothing to do. Nearly all extents are
 * nearly always, and a pool of a TiB has 65,536, so this is what a plan costs.
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

static double share(const struct donor *donor, int more)
{
    return donor->n_slots ? ((double)atomic_load(&donor->used_slots) + more) / donor->n_slots : 2.0;
}

/* Whether a copy may go to this donor: away from every good copy, and on none that has one of whatever kind. */
static bool may_hold(struct evict_loop *loop, const struct look *look, const struct donor *donor, uint32_t except)
{
    struct pool *pool = &loop->pager->pool;

    if (donor->backup || !donor_reachable(donor) || !donor_stays(loop->pager, donor))
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

/* The least full donor that may have a copy; NULL if there is none with room. */
static struct donor *choose_target(struct evict_loop *loop, const struct look *look)
{
    struct pool *pool = &loop->pager->pool;
    struct donor *best = NULL;

    for (uint32_t i = 0; i < pool->n_donors; i++) {
        struct donor *donor = &pool->donors[i];

        if (may_hold(loop, look, donor, NOT_A_COPY) && slots_free(donor) > 0 &&
            (!best || share(donor, 1) < share(best, 1)))
            best = donor;
    }
    return best;
}

static uint32_t free_place(struct evict_loop *loop, uint32_t extent, const struct look *look)
{
    for (uint32_t i = 0; i < COPIES_MAX; i++)
        if (look->copies[i].state == COPY_NONE)
            return i;
    for (uint32_t i = 0; i < COPIES_MAX; i++)
        if (look->copies[i].state == COPY_STALE && !loop->pager->pool.donors[look->copies[i].donor].backup) {
            copy_drop(loop, extent, i);
            return i;
        }
    return NOT_A_COPY;
}

/* Takes a slot of the donor for a copy of the extent. */
static bool new_copy(struct evict_loop *loop, uint32_t extent, const struct look *look, struct donor *donor,
                     struct fill_job *job)
{
    uint32_t place = free_place(loop, extent, look), slot;

    if (place == NOT_A_COPY || !slot_claim(donor, &slot))
        return false;
    *job = (struct fill_job){
        .extent = extent,
        .copy = place,
        .target = {.slot = slot, .donor = (uint16_t)(donor - loop->pager->pool.donors), .state = COPY_FILLING},
        .drop = NOT_A_COPY,
    };
    return true;
}

static bool refill(struct evict_loop *loop, uint32_t extent, const struct look *look, struct fill_job *job)
{
    struct pool *pool = &loop->pager->pool;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        const struct donor *donor = &pool->donors[look->copies[i].donor];
        bool apart = true;

        if (look->copies[i].state != COPY_STALE || donor->backup || !donor_reachable(donor) ||
            !donor_stays(loop->pager, donor))
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

/* Moves a copy of some extent that lies on `from` to `to`. */
static bool move_some(struct evict_loop *loop, const struct donor *from, struct donor *to, struct fill_job *job)
{
    struct pool *pool = &loop->pager->pool;

    for (uint32_t k = 0; k < pool->n_extents; k++) {
        uint32_t extent = (loop->rebuild.cursor + k) % pool->n_extents;

        if (!has_copy_on(pool, extent, (uint32_t)(from - pool->donors)))
            continue;
        struct look look = look_at(loop, extent);

        if (!look.source || look.filling)
            continue;
        for (uint32_t i = 0; i < COPIES_MAX; i++)
            if (look.good[i] && &pool->donors[look.copies[i].donor] == from && may_hold(loop, &look, to, i) &&
                new_copy(loop, extent, &look, to, job)) {
                job->drop = i;
                return true;
            }
    }
    return false;
}

/* Donors with room hold copies of this extent already: one that does not gets room by giving them something. */
static bool make_room(struct evict_loop *loop, const struct look *look, struct fill_job *job)
{
    struct pool *pool = &loop->pager->pool;

    for (uint32_t f = 0; f < pool->n_donors; f++)
        for (uint32_t t = 0; t < pool->n_donors; t++) {
            struct donor *from = &pool->donors[f], *to = &pool->donors[t];

            if (from != to && may_hold(loop, look, from, NOT_A_COPY) && slots_free(to) > 0 &&
                move_some(loop, from, to, job))
                return true;
        }
    return false;
}

/* The copy that is written behind; not while it cannot keep up anyway. */
static bool fill_backup(struct evict_loop *loop, uint32_t extent, const struct look *look, struct fill_job *job)
{
    struct pool *pool = &loop->pager->pool;

    if (loop->lag_ns && clock_ns() < loop->lag_ns + LAG_NS)
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
            return new_copy(loop, extent, look, donor, job);
        if (look->copies[have].state != COPY_STALE)
            return false;
        *job = (struct fill_job){.extent = extent, .copy = have, .target = look->copies[have], .drop = NOT_A_COPY};
        job->target.state = COPY_FILLING;
        return true;
    }
    return false;
}

/* A surplus good copy: rather one beside another on its host, then the one on the fullest donor. */
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

/* Copies that nobody needs go. The last CURRENT one never does. */
static void tidy(struct evict_loop *loop, uint32_t extent)
{
    struct pager *pager = loop->pager;
    struct look look = look_at(loop, extent);
    bool enough = look.n_good >= pager->pool.replicas;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        const struct donor *donor = &pager->pool.donors[look.copies[i].donor];
        bool current = look.copies[i].state == COPY_CURRENT;

        if (look.copies[i].state == COPY_NONE || look.copies[i].state == COPY_FILLING)
            continue;
        if (atomic_load(&donor->lost) ? !current || look.n_current > 0 || look.source
                                      : !donor->backup && enough && !look.good[i])
            copy_drop(loop, extent, i);
    }
    if (look.n_good > pager->pool.replicas && !look.filling)
        copy_drop(loop, extent, most_superfluous(&pager->pool, &look));
}

/* What is missing: less than it should have, copies that have to move, a copy written behind. */
enum urgency { LACKS_COPIES, HAS_TO_MOVE, COMPLETE, URGENCIES };

static enum urgency urgency_of(const struct evict_loop *loop, const struct look *look)
{
    uint32_t replicas = loop->pager->pool.replicas;

    return look->n_good >= replicas ? COMPLETE : look->n_current < replicas ? LACKS_COPIES : HAS_TO_MOVE;
}

/* Copies that only wait for their donors, which have not been away for long. */
static bool waits_for_donors(struct evict_loop *loop, const struct look *look)
{
    uint32_t n = look->n_good;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        const struct donor *donor = &loop->pager->pool.donors[look->copies[i].donor];

        n += look->copies[i].state == COPY_STALE && !donor->backup && donor_stays(loop->pager, donor);
    }
    return n >= loop->pager->pool.replicas;
}

static bool prepare(struct evict_loop *loop, uint32_t extent, enum urgency urgency, struct fill_job *job)
{
    struct look look = look_at(loop, extent);

    if (look.filling || !look.source || urgency_of(loop, &look) != urgency)
        return false;
    if (urgency == COMPLETE)
        return fill_backup(loop, extent, &look, job);
    if (refill(loop, extent, &look, job))
        return true;
    if (waits_for_donors(loop, &look))
        return false;
    struct donor *target = choose_target(loop, &look);

    if (target)
        return new_copy(loop, extent, &look, target, job);
    bool may_move = loop->rebuild.may_make_room;

    loop->rebuild.may_make_room = false; /* a look at every extent: once in a plan */
    return may_move && make_room(loop, &look, job);
}

/* A donor that has much more room than another takes a copy from it. */
static bool balance(struct evict_loop *loop, struct fill_job *job)
{
    struct pool *pool = &loop->pager->pool;

    for (uint32_t f = 0; f < pool->n_donors; f++)
        for (uint32_t t = 0; t < pool->n_donors; t++) {
            struct donor *from = &pool->donors[f], *to = &pool->donors[t];

            if (from->backup || to->backup || share(from, -1) <= share(to, 1) + 0.02 || slots_free(to) == 0 ||
                !donor_stays(loop->pager, from))
                continue;
            if (move_some(loop, from, to, job))
                return true;
        }
    return false;
}

bool plan_room(struct evict_loop *loop, uint32_t extent)
{
    struct look look = look_at(loop, extent);

    return choose_target(loop, &look) != NULL;
}

bool plan_empty_copy(struct evict_loop *loop, uint32_t extent, struct copy *copy)
{
    struct look look = look_at(loop, extent);
    struct donor *donor = choose_target(loop, &look);
    uint32_t slot;

    if (!donor || !slot_claim(donor, &slot))
        return false;
    *copy = (struct copy){
        .slot = slot,
        .donor = (uint16_t)(donor - loop->pager->pool.donors),
        .state = COPY_CURRENT,
    };
    return true;
}

/* Those of which something is missing, or too much, in order. What is too much goes. */
static void find_unsettled(struct evict_loop *loop)
{
    const struct pool *pool = &loop->pager->pool;
    struct masks masks = masks_of(loop->pager);

    loop->rebuild.n_unsettled = 0;
    for (uint32_t extent = 0; extent < pool->n_extents; extent++) {
        if (settled(pool, extent, &masks))
            continue;
        tidy(loop, extent);
        loop->rebuild.unsettled[loop->rebuild.n_unsettled++] = extent;
    }
}

bool plan_next(struct evict_loop *loop, struct fill_job *job)
{
    struct pool *pool = &loop->pager->pool;
    struct rebuild *rebuild = &loop->rebuild;

    uint32_t first = 0; /* of the unsettled ones, from the cursor on */

    rebuild->may_make_room = true;
    rebuild->cursor = (rebuild->cursor + 1) % pool->n_extents;
    find_unsettled(loop);
    while (first < rebuild->n_unsettled && rebuild->unsettled[first] < rebuild->cursor)
        first++;
    for (int urgency = LACKS_COPIES; urgency < URGENCIES; urgency++)
        for (uint32_t k = 0; k < rebuild->n_unsettled; k++)
            if (prepare(loop, rebuild->unsettled[(first + k) % rebuild->n_unsettled], (enum urgency)urgency, job))
                return true;
    return balance(loop, job);
}

uint32_t plan_left(struct evict_loop *loop)
{
    uint32_t n = 0;

    for (uint32_t k = 0; k < loop->rebuild.n_unsettled; k++) {
        struct look look = look_at(loop, loop->rebuild.unsettled[k]);

        n += urgency_of(loop, &look) != COMPLETE;
    }
    return n;
}
