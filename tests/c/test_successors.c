/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "fault/successors.h"

#define POOL_PAGES 1024u
#define BLOCK      SUCCESSOR_BLOCK_PAGES

static void a_stream_that_ended_is_followed_where_its_reader_went(void)
{
    struct successors successors;
    CHECK_EQUAL(successors_create(&successors, POOL_PAGES), 0);
    successors_learn(&successors, 3 * BLOCK + 5, 40 * BLOCK, false);
    struct successor found = successors_at(&successors, 4 * BLOCK, 1);
    CHECK(found.known);
    CHECK(!found.backwards);
    CHECK_EQUAL(found.first, 40 * BLOCK);
    CHECK(!successors_at(&successors, 4 * BLOCK - 1, 1).known); /* this is inside the block */
    CHECK(!successors_at(&successors, 5 * BLOCK, 1).known);     /* this is the end of another block */
    successors_destroy(&successors);
}

static void a_reader_may_turn_downwards(void)
{
    struct successors successors;
    CHECK_EQUAL(successors_create(&successors, POOL_PAGES), 0);
    successors_learn(&successors, 7 * BLOCK, 9 * BLOCK + 15, true);
    struct successor found = successors_at(&successors, 8 * BLOCK, 1);
    CHECK(found.known);
    CHECK(found.backwards);
    CHECK_EQUAL(found.first, 9 * BLOCK + 15);
    /* The turn also holds for a stream that comes to the block from above. */
    CHECK(successors_at(&successors, 7 * BLOCK - 1, -1).known);
    successors_destroy(&successors);
}

static void a_turn_within_a_block_is_not_remembered(void)
{
    struct successors successors;
    CHECK_EQUAL(successors_create(&successors, POOL_PAGES), 0);
    successors_learn(&successors, 2 * BLOCK, 2 * BLOCK + 9, false);
    CHECK(!successors_at(&successors, 3 * BLOCK, 1).known);
    successors_destroy(&successors);
}

static void a_reader_that_goes_straight_on_makes_it_forgotten(void)
{
    struct successors successors;
    CHECK_EQUAL(successors_create(&successors, POOL_PAGES), 0);
    successors_learn(&successors, 3 * BLOCK, 40 * BLOCK, false);
    CHECK(!successors_forget(&successors, BLOCK, 2 * BLOCK));
    CHECK(successors_forget(&successors, 3 * BLOCK, 4 * BLOCK));
    CHECK(!successors_at(&successors, 4 * BLOCK, 1).known);
    successors_destroy(&successors);
}

static void readahead_ends_at_a_turn_and_at_the_ends_of_the_pool(void)
{
    struct successors successors;
    CHECK_EQUAL(successors_create(&successors, POOL_PAGES), 0);
    CHECK_EQUAL(successors_clip(&successors, 10, 100, false), 100);
    CHECK_EQUAL(successors_clip(&successors, POOL_PAGES - 3, 100, false), 3);
    CHECK_EQUAL(successors_clip(&successors, 2, 100, true), 3);
    successors_learn(&successors, 3 * BLOCK, 40 * BLOCK, false);
    CHECK_EQUAL(successors_clip(&successors, 2 * BLOCK, 100, false), 2 * BLOCK);
    CHECK_EQUAL(successors_clip(&successors, 4 * BLOCK + 1, 100, true), BLOCK + 2);
    successors_destroy(&successors);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(a_stream_that_ended_is_followed_where_its_reader_went),
        TEST(a_reader_may_turn_downwards),
        TEST(a_turn_within_a_block_is_not_remembered),
        TEST(a_reader_that_goes_straight_on_makes_it_forgotten),
        TEST(readahead_ends_at_a_turn_and_at_the_ends_of_the_pool),
    };
    return TESTS_RUN(tests, argc, argv);
}
