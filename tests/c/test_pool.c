/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "page/pages.h"
#include "pool/pool.h"
#include "pool/slots.h"

#define SLOTS 64u

static struct pool pool;
static uint8_t slots[DONORS_MAX][SLOTS];

/* Makes a pool without donors. */
static void begin(uint32_t replicas)
{
    memset(&pool, 0, sizeof(pool));
    memset(slots, 0, sizeof(slots));
    pool.replicas = replicas;
    pool.extent_pages = 16;
}

static struct donor *add_donor(char *host, uint32_t n_slots)
{
    struct donor *donor = &pool.donors[pool.n_donors];
    donor->host = host;
    donor->n_slots = n_slots;
    donor->slots = slots[pool.n_donors];
    pool.n_donors++;
    return donor;
}

static void with_one_copy_all_slots_count(void)
{
    begin(1);
    CHECK_EQUAL(pool_fits(&pool, 0), 0);
    add_donor("a", 10);
    add_donor("b", 3);
    CHECK_EQUAL(pool_fits(&pool, 0), 13);
}

static void two_copies_lie_on_two_hosts(void)
{
    begin(2);
    add_donor("a", 10);
    CHECK_EQUAL(pool_fits(&pool, 0), 0);
    add_donor("b", 3);
    CHECK_EQUAL(pool_fits(&pool, 0), 3);
    add_donor("c", 20);
    CHECK_EQUAL(pool_fits(&pool, 0), 13); /* c takes a copy of each extent, a and b take the others */
}

static void donors_of_one_host_count_as_one_unless_that_is_allowed(void)
{
    begin(2);
    add_donor("a", 10);
    add_donor("a", 10);
    CHECK_EQUAL(pool_fits(&pool, 0), 0);
    CHECK(!pool_apart(&pool, &pool.donors[0], &pool.donors[1]));
    pool.allow_same_host = true;
    CHECK_EQUAL(pool_fits(&pool, 0), 10);
    CHECK(pool_apart(&pool, &pool.donors[0], &pool.donors[1]));
    CHECK(!pool_apart(&pool, &pool.donors[0], &pool.donors[0]));
}

static void donors_that_are_left_out_and_backups_do_not_count(void)
{
    begin(1);
    add_donor("a", 10);
    add_donor("b", 3);
    add_donor("c", 50)->backup = true;
    CHECK_EQUAL(pool_fits(&pool, 0), 13);
    CHECK_EQUAL(pool_fits(&pool, 1u << 0), 3);
    CHECK_EQUAL(pool_fits(&pool, 1u << 0 | 1u << 1), 0);
}

static void pages_are_left_up_to_the_end_of_their_extent(void)
{
    begin(1);
    CHECK_EQUAL(pool_left(&pool, 0), 16);
    CHECK_EQUAL(pool_left(&pool, 15), 1);
    CHECK_EQUAL(pool_left(&pool, 16), 16);
    CHECK_EQUAL(pool_left(&pool, 37), 11);
}

static void a_page_lies_at_its_extents_slot(void)
{
    struct extent extents[3] = {0};
    begin(1);
    pool.extents = extents;
    pool.n_extents = 3;
    pool.extent_bytes = 16 * PAGE_BYTES;
    struct donor *donor = add_donor("a", 10);
    copy_put(&extents[2], 0, (struct copy){.slot = 7, .donor = 0, .state = COPY_CURRENT});
    struct place place = pool_place_of(&pool, 37, 0, copy_word(&extents[2], 0));
    CHECK(place.donor == donor);
    CHECK_EQUAL(place.offset, 7 * 16 * PAGE_BYTES + 5 * PAGE_BYTES);
}

static void slots_are_claimed_from_the_first_on_until_none_is_free(void)
{
    uint32_t slot;
    begin(1);
    struct donor *donor = add_donor("a", 3);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQUAL(slots_free(donor), 3 - i);
        CHECK(slot_claim(donor, &slot));
        CHECK_EQUAL(slot, i);
    }
    CHECK_EQUAL(slots_free(donor), 0);
    CHECK(!slot_claim(donor, &slot));
}

static void a_slot_that_was_given_up_is_free_only_after_it_is_trimmed(void)
{
    uint32_t slot;
    begin(1);
    struct donor *donor = add_donor("a", 1);
    CHECK(slot_claim(donor, &slot));
    slot_give_up(donor, slot);
    CHECK_EQUAL(slots_free(donor), 0);
    CHECK(!slot_claim(donor, &slot));
    slot_freed(donor, 0);
    CHECK_EQUAL(slots_free(donor), 1);
    CHECK(slot_claim(donor, &slot));
}

static void a_donor_that_was_removed_lends_no_slot(void)
{
    uint32_t slot;
    begin(1);
    struct donor *donor = add_donor("a", 3);
    donor->removed = true;
    CHECK(!slot_claim(donor, &slot));
    CHECK_EQUAL(slots_free(donor), 3);
}

static void a_copy_that_missed_a_write_is_stale_if_it_is_still_the_same(void)
{
    struct extent extent = {0};
    copy_put(&extent, 0, (struct copy){.slot = 1, .state = COPY_FILLING});
    uint64_t word = copy_word(&extent, 0);
    copy_complete(&extent, 0);
    CHECK_EQUAL(copy_load(&extent, 0).state, COPY_CURRENT);
    CHECK(copy_word(&extent, 0) != word);
    word = copy_word(&extent, 0);
    copy_put(&extent, 0, (struct copy){.slot = 2, .state = COPY_CURRENT});
    CHECK(!copy_missed(&extent, 0, word)); /* another copy has taken the place of the one that missed the write */
    CHECK_EQUAL(copy_load(&extent, 0).state, COPY_CURRENT);
    CHECK(copy_missed(&extent, 0, copy_word(&extent, 0)));
    CHECK_EQUAL(copy_load(&extent, 0).state, COPY_STALE);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(with_one_copy_all_slots_count),
        TEST(two_copies_lie_on_two_hosts),
        TEST(donors_of_one_host_count_as_one_unless_that_is_allowed),
        TEST(donors_that_are_left_out_and_backups_do_not_count),
        TEST(pages_are_left_up_to_the_end_of_their_extent),
        TEST(a_page_lies_at_its_extents_slot),
        TEST(slots_are_claimed_from_the_first_on_until_none_is_free),
        TEST(a_slot_that_was_given_up_is_free_only_after_it_is_trimmed),
        TEST(a_donor_that_was_removed_lends_no_slot),
        TEST(a_copy_that_missed_a_write_is_stale_if_it_is_still_the_same),
    };
    return TESTS_RUN(tests, argc, argv);
}
