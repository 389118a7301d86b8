/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "page/reclaim_policy.h"

#define POOL_PAGES  4096u
#define EPOCH_PAGES 10u

static struct page_table *table_new(bool fifo)
{
    static struct page_table table; /* one at a time */
    table = (struct page_table){0};
    CHECK_EQUAL(page_table_create(&table, POOL_PAGES, false, NULL), 0);
    table.fifo = fifo;
    table.epoch_pages = EPOCH_PAGES;
    return &table;
}

static void table_free(struct page_table *table)
{
    page_table_destroy(table);
}

/* Plays that a page is fetched and mapped. */
static void come_in(struct page_table *table, uint32_t page, bool of_stream)
{
    reclaim_came_in(table, page, of_stream);
    page_set_state(table, page, PAGE_RESIDENT);
    page_list_push(table, reclaim_mapped(table, page), page);
}

/* Plays that a page is zapped and leaves. */
static void leave(struct page_table *table, uint32_t page)
{
    CHECK(page_unlist(table, page));
    reclaim_left(table, page);
    page_set_state(table, page, PAGE_ABSENT);
}

/* Plays that n other pages come in and leave. */
static void others_leave(struct page_table *table, uint32_t n)
{
    for (uint32_t page = POOL_PAGES - n; page < POOL_PAGES; page++) {
        table->pages[page].left_at = 0;
        table->pages[page].history = 0;
        come_in(table, page, false);
        leave(table, page);
    }
}

static void a_page_that_comes_in_is_on_probation(void)
{
    struct page_table *table = table_new(false);
    come_in(table, 1, false);
    CHECK(reclaim_mapped(table, 1) == &table->mapped[RECLAIM_PROBATION]);
    CHECK_EQUAL(reclaim_mapped_count(table), 1);
    table_free(table);
}

static void a_page_that_is_used_while_inactive_is_protected(void)
{
    struct page_table *table = table_new(false);
    come_in(table, 1, false);
    CHECK(page_unlist(table, 1));
    reclaim_used(table, 1);
    CHECK(reclaim_mapped(table, 1) == &table->mapped[RECLAIM_PROTECTED]);
    table_free(table);
}

static void a_page_that_comes_back_soon_is_protected_and_a_late_one_is_not(void)
{
    struct page_table *table = table_new(false);
    come_in(table, 1, false);
    leave(table, 1);
    others_leave(table, EPOCH_PAGES);
    come_in(table, 1, false);
    CHECK(table->pages[1].is_protected);
    come_in(table, 2, false);
    leave(table, 2);
    others_leave(table, 5 * EPOCH_PAGES);
    come_in(table, 2, false);
    CHECK(!table->pages[2].is_protected);
    table_free(table);
}

static void a_page_that_comes_back_three_times_is_protected(void)
{
    struct page_table *table = table_new(false);
    for (int i = 0; i < 4; i++) {
        come_in(table, 1, true);
        CHECK_EQUAL(table->pages[1].is_protected, i == 3);
        if (i < 3) {
            leave(table, 1);
        }
    }
    table_free(table);
}

static void pages_of_streams_are_zapped_first_and_leave_first(void)
{
    struct page_table *table = table_new(false);
    come_in(table, 1, false);
    come_in(table, 2, true);
    come_in(table, 3, true);
    CHECK(reclaim_zap_list(table, 1, 0) == &table->mapped[RECLAIM_STREAM]);
    CHECK_EQUAL(reclaim_stream_excess(table, 1), 1);
    CHECK_EQUAL(reclaim_stream_excess(table, 5), 0);
    CHECK(reclaim_inactive(table, 2) == &table->spent);
    CHECK(reclaim_inactive(table, 1) == &table->inactive);
    table->pages[2].flags |= PAGE_F_READAHEAD; /* read ahead and not used yet */
    CHECK(reclaim_inactive(table, 2) == &table->inactive);
    table_free(table);
}

static void a_protected_page_is_zapped_when_its_review_is_due(void)
{
    struct page_table *table = table_new(false);
    come_in(table, 1, true);
    reclaim_used(table, 2);
    page_set_state(table, 2, PAGE_RESIDENT);
    page_list_push(table, reclaim_mapped(table, 2), 2);
    CHECK(reclaim_zap_list(table, 0, 1) == &table->mapped[RECLAIM_PROTECTED]);
    CHECK(reclaim_zap_list(table, 0, 2) == &table->mapped[RECLAIM_STREAM]);
    CHECK(reclaim_zap_list(table, 0, 0) == &table->mapped[RECLAIM_STREAM]);
    table_free(table);
}

static void uses_and_dirt_give_more_rounds(void)
{
    struct page_table *table = table_new(false);
    CHECK(!reclaim_spares(table, 1));
    reclaim_used(table, 1);
    CHECK(reclaim_spares(table, 1));
    CHECK(reclaim_spares(table, 1));
    CHECK(!reclaim_spares(table, 1));
    page_set_dirty(table, 2, true);
    CHECK(reclaim_spares(table, 2));
    CHECK(!reclaim_spares(table, 2));
    table_free(table);
}

static void with_fifo_all_pages_are_alike(void)
{
    struct page_table *table = table_new(true);
    come_in(table, 1, true);
    reclaim_used(table, 1);
    CHECK(!reclaim_spares(table, 1));
    come_in(table, 2, false);
    CHECK(reclaim_mapped(table, 1) == reclaim_mapped(table, 2));
    CHECK(reclaim_inactive(table, 1) == &table->inactive);
    table_free(table);
}

static void a_page_in_motion_stays_on_no_list(void)
{
    struct page_table *table = table_new(false);
    page_set_state(table, 1, PAGE_FETCHING);
    CHECK(!page_unlist(table, 1));
    come_in(table, 2, false);
    table->pages[2].flags |= PAGE_F_IO;
    CHECK(!page_unlist(table, 2));
    table->pages[2].flags &= (uint8_t)~PAGE_F_IO;
    CHECK(page_unlist(table, 2));
    CHECK_EQUAL(reclaim_mapped_count(table), 0);
    table_free(table);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(a_page_that_comes_in_is_on_probation),
        TEST(a_page_that_is_used_while_inactive_is_protected),
        TEST(a_page_that_comes_back_soon_is_protected_and_a_late_one_is_not),
        TEST(a_page_that_comes_back_three_times_is_protected),
        TEST(pages_of_streams_are_zapped_first_and_leave_first),
        TEST(a_protected_page_is_zapped_when_its_review_is_due),
        TEST(uses_and_dirt_give_more_rounds),
        TEST(with_fifo_all_pages_are_alike),
        TEST(a_page_in_motion_stays_on_no_list),
    };
    return TESTS_RUN(tests, argc, argv);
}
