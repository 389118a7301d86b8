/* SPDX-License-Identifier: MIT */
#include "pool/pool.h"

#include "base/clock.h"
#include "donor/channel.h"
#include "donor/donor_open.h"
#include "donor/liveness.h"
#include "donor/patience.h"
#include "log.h"
#include "page/pages.h"
#include "size.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define EXTENT_MAX_BYTES (16ull << 20)

bool pool_apart(const struct pool *pool, const struct donor *a, const struct donor *b)
{
    return a != b && (pool->allow_same_host || strcmp(a->host, b->host) != 0);
}

/*
 * Returns how many slots the donors on this donor's host have, less those taken; 0 if an earlier donor is on the same
 * host, so that each host counts once. Donors in the mask and the backup are left out.
 */
static uint64_t host_slots(const struct pool *pool, uint32_t donor, uint64_t without_mask, const uint32_t *taken)
{
    uint64_t slots = 0;

    for (uint32_t i = 0; i < pool->n_donors; i++) {
        const struct donor *d = &pool->donors[i];

        if (d->backup || (without_mask >> i & 1) || pool_apart(pool, d, &pool->donors[donor]))
            continue;
        if (i < donor)
            return 0;
        slots += d->n_slots - (taken ? taken[i] : 0);
    }
    return slots;
}

/* n extents with r copies on distinct hosts fit if and only if the sum over the hosts of min(slots, n) is r × n. */
static bool fits(const struct pool *pool, uint64_t without_mask, const uint32_t *taken, uint64_t n)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < pool->n_donors; i++) {
        uint64_t slots =
            pool->donors[i].backup || (without_mask >> i & 1) ? 0 : host_slots(pool, i, without_mask, taken);

        sum += slots < n ? slots : n;
    }
    return sum >= pool->replicas * n;
}

uint32_t pool_fits(const struct pool *pool, uint64_t without_mask)
{
    uint64_t low = 0, high = PAGE_NONE;

    while (low < high) {
        uint64_t middle = (low + high + 1) / 2;

        if (fits(pool, without_mask, NULL, middle))
            low = middle;
        else
            high = middle - 1;
    }
    return (uint32_t)low;
}

static uint64_t choose_extent_bytes(const struct pool *pool)
{
    uint64_t extent_bytes = EXTENT_MAX_BYTES;

    for (uint32_t i = 0; i < pool->n_donors; i++)
        while (extent_bytes > EXTENT_MIN_BYTES && pool->donors[i].export_bytes % extent_bytes)
            extent_bytes /= 2;
    return extent_bytes;
}

struct deal {
    const struct pool *pool;
    uint32_t dealt[DONORS_MAX];
    uint32_t chosen[REPLICAS_MAX], n_chosen;
};

static bool may_choose(const struct deal *deal, uint32_t donor)
{
    const struct donor *d = &deal->pool->donors[donor];

    if (d->backup || deal->dealt[donor] == d->n_slots)
        return false;
    for (uint32_t i = 0; i < deal->n_chosen; i++)
        if (!pool_apart(deal->pool, d, &deal->pool->donors[deal->chosen[i]]))
            return false;
    return true;
}

/*
 * Chooses the donor that is furthest behind its share: after k extents each has k times its share, within one extent.
 */
static uint32_t furthest_behind(const struct deal *deal)
{
    uint32_t best = DONORS_MAX;
    double best_fill = 2.0;

    for (uint32_t i = 0; i < deal->pool->n_donors; i++) {
        double fill = (deal->dealt[i] + 0.5) / deal->pool->donors[i].n_slots;

        if (may_choose(deal, i) && fill < best_fill) {
            best = i;
            best_fill = fill;
        }
    }
    return best;
}

/* Chooses the donor whose host has most room left. By this rule the room that is left is never on too few hosts. */
static uint32_t most_left(const struct deal *deal)
{
    uint32_t best = DONORS_MAX;
    uint64_t most = 0;

    for (uint32_t i = 0; i < deal->pool->n_donors; i++) {
        uint64_t left = 0;

        for (uint32_t k = 0; k < deal->pool->n_donors && may_choose(deal, i); k++)
            if (!deal->pool->donors[k].backup &&
                !pool_apart(deal->pool, &deal->pool->donors[k], &deal->pool->donors[i]))
                left += deal->pool->donors[k].n_slots - deal->dealt[k];
        if (left > most) {
            best = i;
            most = left;
        }
    }
    return best;
}

static bool choose(struct deal *deal, uint32_t (*rule)(const struct deal *deal))
{
    for (deal->n_chosen = 0; deal->n_chosen < deal->pool->replicas; deal->n_chosen++) {
        uint32_t donor = rule(deal);

        if (donor == DONORS_MAX)
            break;
        deal->chosen[deal->n_chosen] = donor;
        deal->dealt[donor]++;
    }
    return deal->n_chosen == deal->pool->replicas;
}

static void choose_again(struct deal *deal)
{
    for (uint32_t i = 0; i < deal->n_chosen; i++)
        deal->dealt[deal->chosen[i]]--;
    bool chosen = choose(deal, most_left);

    assert(chosen);
    (void)chosen;
}

static void deal_extent(struct deal *deal, struct extent *extent, uint32_t n_left)
{
    if (!choose(deal, furthest_behind) || !fits(deal->pool, 0, deal->dealt, n_left))
        choose_again(deal);
    for (uint32_t i = 0; i < deal->n_chosen; i++) {
        uint32_t donor = deal->chosen[i];

        copy_put(extent, i,
                 (struct copy){.slot = deal->dealt[donor] - 1, .donor = (uint16_t)donor, .state = COPY_CURRENT});
    }
}

/* Deals out the copies on the backup. They start as CURRENT, too, as no page has been written yet. */
static void deal_backup(struct pool *pool)
{
    for (uint32_t d = 0; d < pool->n_donors; d++)
        for (uint32_t e = 0; pool->donors[d].backup && e < pool->n_extents && e < pool->donors[d].n_slots; e++)
            copy_put(&pool->extents[e], pool->replicas,
                     (struct copy){.slot = e, .donor = (uint16_t)d, .state = COPY_CURRENT});
}

static void count_slots(struct pool *pool)
{
    for (uint32_t i = 0; i < pool->n_donors; i++) {
        struct donor *donor = &pool->donors[i];

        for (uint32_t s = 0; s < donor->n_slots; s++)
            donor->slots[s] = SLOT_FREE;
        atomic_store(&donor->used_slots, 0);
    }
    for (uint32_t e = 0; e < pool->n_extents; e++)
        for (uint32_t i = 0; i < COPIES_MAX; i++) {
            struct copy copy = copy_load(&pool->extents[e], i);

            if (copy.state == COPY_NONE)
                continue;
            pool->donors[copy.donor].slots[copy.slot] = SLOT_USED;
            atomic_fetch_add(&pool->donors[copy.donor].used_slots, 1);
        }
}

static int deal_extents(struct pool *pool)
{
    struct deal deal = {.pool = pool};

    pool->extents = calloc(pool->n_extents, sizeof(*pool->extents));
    if (!pool->extents)
        return -ENOMEM;
    for (uint32_t e = 0; e < pool->n_extents; e++)
        deal_extent(&deal, &pool->extents[e], pool->n_extents - e - 1);
    deal_backup(pool);
    count_slots(pool);
    return 0;
}

/* Chooses how many extents there are. Returns 0, or -errno with an error for people in text. */
static int choose_size(struct pool *pool, const struct pool_wishes *wishes, char *text, size_t text_bytes)
{
    uint32_t fit = pool_fits(pool, 0);
    uint64_t wanted = wishes->pool_bytes ? (wishes->pool_bytes + pool->extent_bytes - 1) / pool->extent_bytes : fit;
    uint64_t offered_bytes = 0;

    for (uint32_t i = 0; i < pool->n_donors; i++)
        offered_bytes += pool->donors[i].backup ? 0 : pool->donors[i].n_slots * pool->extent_bytes;
    if (fit > 0 && wanted <= fit && wanted * pool->extent_pages < PAGE_NONE) {
        pool->n_extents = (uint32_t)wanted;
        return 0;
    }
    if (fit == 0 && offered_bytes > 0)
        snprintf(text, text_bytes,
                 "%u replicas need donors on %u hosts: --donor of another host is missing (or --allow-same-host)",
                 pool->replicas, pool->replicas);
    else if (wanted > fit)
        snprintf(text, text_bytes,
                 "the pool is to have %llu MiB (replicas: %u): the donors' %llu MiB are enough for %llu MiB",
                 (unsigned long long)(wishes->pool_bytes >> 20), pool->replicas,
                 (unsigned long long)(offered_bytes >> 20), (unsigned long long)(fit * pool->extent_bytes >> 20));
    else
        snprintf(text, text_bytes, "the donors' exports cannot be cut into extents of %llu bytes: %s",
                 (unsigned long long)pool->extent_bytes, strerror(ERANGE));
    return fit == 0 ? -ERANGE : -ENOSPC;
}

static int check_backup(const struct pool *pool, char *text, size_t text_bytes)
{
    for (uint32_t i = 0; i < pool->n_donors; i++) {
        const struct donor *donor = &pool->donors[i];

        if (!donor->backup || donor->n_slots >= pool->n_extents)
            continue;
        snprintf(text, text_bytes, "backup %s: it has %llu MiB, the pool %llu MiB", donor->uri,
                 (unsigned long long)(donor->export_bytes >> 20), (unsigned long long)(pool_bytes(pool) >> 20));
        return -ENOSPC;
    }
    return 0;
}

static int open_donors(struct pool *pool, const struct pool_wishes *wishes, char *text, size_t text_bytes)
{
    for (uint32_t i = 0; i < wishes->n_uris + (wishes->backup != NULL); i++) {
        struct donor *donor = &pool->donors[i];

        donor->libnbd_only = wishes->libnbd_only;
        donor->backup = i == wishes->n_uris;
        pool->n_donors = i + 1;
        int rc = donor_open(donor, donor->backup ? wishes->backup : wishes->uris[i], text, text_bytes);

        if (rc < 0)
            return rc;
    }
    return 0;
}

int pool_open(struct pool *pool, const struct pool_wishes *wishes, char *text, size_t text_bytes)
{
    pool->replicas = wishes->replicas;
    pool->allow_same_host = wishes->allow_same_host;
    int rc = open_donors(pool, wishes, text, text_bytes);

    if (rc < 0)
        return rc;
    pool->extent_bytes = wishes->extent_bytes ? wishes->extent_bytes : choose_extent_bytes(pool);
    pool->extent_pages = (uint32_t)(pool->extent_bytes / PAGE_BYTES);
    for (uint32_t i = 0; i < pool->n_donors && rc == 0; i++)
        rc = donor_cut(&pool->donors[i], pool->extent_bytes);
    if (rc == 0) {
        rc = choose_size(pool, wishes, text, text_bytes);
        rc = rc < 0 ? rc : check_backup(pool, text, text_bytes);
        if (rc < 0)
            return rc;
        rc = deal_extents(pool);
    }
    if (rc < 0)
        snprintf(text, text_bytes, "no memory for the pool: %s", strerror(-rc));
    return rc;
}

/* Whether the copy names a slot that exists, as each copy in a state file has to. */
static bool copy_valid(const struct pool *pool, struct copy copy)
{
    return copy.state == COPY_NONE ||
           (copy.state < COPY_STATES && copy.donor < pool->n_donors && copy.slot < pool->donors[copy.donor].n_slots);
}

static int inherit_extents(struct pool *pool)
{
    for (uint32_t e = 0; e < pool->n_extents; e++)
        for (uint32_t i = 0; i < COPIES_MAX; i++) {
            struct copy copy = copy_load(&pool->extents[e], i);

            if (!copy_valid(pool, copy))
                return -EINVAL;
            if (copy.state != COPY_FILLING && !(copy.state == COPY_CURRENT && pool->donors[copy.donor].backup))
                continue;
            copy_outdate(&pool->extents[e], i);
        }
    return 0;
}

/* Has all free slots trimmed, because the earlier pager may have given them up without trimming them. */
static void distrust_free_slots(struct pool *pool)
{
    for (uint32_t i = 0; i < pool->n_donors; i++)
        for (uint32_t s = 0; s < pool->donors[i].n_slots; s++)
            if (pool->donors[i].slots[s] == SLOT_FREE) {
                pool->donors[i].slots[s] = SLOT_GIVEN_UP;
                pool->donors[i].n_given_up++;
            }
}

int pool_inherit(struct pool *pool)
{
    int rc = 0;

    pool->extent_pages = (uint32_t)(pool->extent_bytes / PAGE_BYTES);
    for (uint32_t i = 0; i < pool->n_donors && rc == 0; i++) {
        rc = donor_cut(&pool->donors[i], pool->extent_bytes);
        donor_inherit(&pool->donors[i]);
    }
    rc = rc < 0 ? rc : inherit_extents(pool);
    if (rc < 0)
        return rc;
    count_slots(pool);
    distrust_free_slots(pool);
    return 0;
}

void pool_close(struct pool *pool)
{
    for (uint32_t i = 0; i < pool->n_donors; i++)
        donor_close(&pool->donors[i]);
    if (!pool->extents_shared)
        free(pool->extents);
    pool->n_donors = 0;
    pool->extents = NULL;
}

uint64_t pool_bytes(const struct pool *pool)
{
    return (uint64_t)pool->n_extents * pool->extent_bytes;
}

struct place pool_place_of(const struct pool *pool, uint32_t page, uint32_t index, uint64_t word)
{
    struct copy copy = copy_of_word(word);
    uint32_t within = page % pool->extent_pages;

    return (struct place){
        .donor = (struct donor *)&pool->donors[copy.donor],
        .offset = copy.slot * pool->extent_bytes + (uint64_t)within * PAGE_BYTES,
        .copy = index,
        .word = word,
    };
}

/* Returns a number by which donors are ordered for pool_pick(): the donor with the least is asked. */
static uint64_t reluctance(const struct donor *donor, enum channel_class class)
{
    uint64_t rank = atomic_load_explicit(&donor->states[class], memory_order_relaxed) == CHANNEL_UP ? 0 : 4;

    rank += atomic_load_explicit(&donor->slow, memory_order_relaxed) ? 2 : 0;
    rank += donor->backup ? 1 : 0;
    return rank << 32 | atomic_load_explicit(&donor->smoothed_us, memory_order_relaxed);
}

bool pool_pick(const struct pool *pool, uint32_t page, enum channel_class class, uint32_t tried_mask,
               struct place *place)
{
    const struct extent *extent = &pool->extents[page / pool->extent_pages];
    uint64_t least = UINT64_MAX, best_word = 0;
    uint32_t best = COPIES_MAX;

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        uint64_t word = copy_word(extent, i);
        struct copy copy = copy_of_word(word);

        if (copy.state != COPY_CURRENT || (tried_mask >> i & 1) || donor_gone(&pool->donors[copy.donor]))
            continue;
        uint64_t rank = reluctance(&pool->donors[copy.donor], class);

        if (rank < least) {
            least = rank;
            best = i;
            best_word = word;
        }
    }
    if (best == COPIES_MAX)
        return false;
    *place = pool_place_of(pool, page, best, best_word);
    return true;
}

bool pool_reaches(const struct pool *pool, uint32_t page, enum channel_class class)
{
    const struct extent *extent = &pool->extents[page / pool->extent_pages];

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        struct copy copy = copy_load(extent, i);
        const struct donor *donor = &pool->donors[copy.donor];

        if (copy.state == COPY_CURRENT && !donor_gone(donor) &&
            atomic_load_explicit(&donor->states[class], memory_order_relaxed) == CHANNEL_UP)
            return true;
    }
    return false;
}

struct place pool_place(const struct pool *pool, uint32_t page)
{
    const struct extent *extent = &pool->extents[page / pool->extent_pages];
    struct place place;

    if (pool_pick(pool, page, CHANNEL_DEMAND, 0, &place))
        return place;
    uint32_t index = 0;

    for (uint32_t i = COPIES_MAX; i-- > 0;)
        if (copy_load(extent, i).state == COPY_CURRENT)
            index = i;
    return pool_place_of(pool, page, index, copy_word(extent, index));
}

uint64_t pool_look(struct pool *pool, enum channel_class first, enum channel_class last, int epoll_fd,
                   uint64_t slow_ns)
{
    uint64_t now_ns = clock_ns();

    for (uint32_t d = 0; d < pool->n_donors; d++)
        for (int class = (int)first; class <= (int)last; class ++) {
            struct channel *channel = &pool->donors[d].channels[class];

            liveness_look(channel, epoll_fd, now_ns, slow_ns);
            channel_retire(channel, epoll_fd);
        }
    return now_ns + LOOK_NS;
}
