/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "fault/stream.h"

#include <stdlib.h>

#define POOL_PAGES      100000u
#define READAHEAD_PAGES 64u
#define RUN_PAGES       48u

static const struct stream_cache cache = {.cache_pages = 50000};

static struct streams *streams_new(uint32_t readahead_pages)
{
    struct streams *streams = calloc(1, sizeof(*streams));
    CHECK_EQUAL(streams_create(streams, POOL_PAGES, readahead_pages), 0);
    return streams;
}

static void streams_free(struct streams *streams)
{
    streams_destroy(streams);
    free(streams);
}

/* Plays three faults at this distance, the last one at `page`. Returns the stream that they make, or NULL. */
static struct stream *three_faults(struct streams *streams, uint32_t page, int32_t distance)
{
    struct stream *stream = NULL;
    for (int32_t i = 2; i >= 0; i--) {
        stream_fault(streams, &cache, page - (uint32_t)(i * distance), &stream);
    }
    return stream;
}

/* Moves the reader to this page and takes all wishes of the streams. Returns how many pages they wish for. */
static uint32_t advance(struct streams *streams, struct stream *stream, uint32_t page)
{
    struct stream_walk walk = stream_advance(streams, &cache, stream, page);
    struct stream_wish wish;
    uint32_t n_pages = 0;
    while (stream_wants(streams, &walk, &wish)) {
        n_pages += wish.n_pages;
        stream_covered(&walk, wish.n_pages);
    }
    return n_pages;
}

static void three_faults_in_line_make_a_stream(void)
{
    struct streams *streams = streams_new(READAHEAD_PAGES);
    struct stream *stream;
    CHECK_EQUAL(stream_fault(streams, &cache, 1000, &stream), 0);
    CHECK(stream == NULL);
    CHECK_EQUAL(stream_fault(streams, &cache, 1001, &stream), 0);
    CHECK(stream == NULL);
    CHECK(stream_fault(streams, &cache, 1002, &stream) > 0);
    CHECK(stream != NULL);
    CHECK_EQUAL(stream->stride, 1);
    CHECK_EQUAL(stream->frontier, 1003);
    streams_free(streams);
}

static void other_faults_in_between_do_not_matter(void)
{
    struct streams *streams = streams_new(READAHEAD_PAGES);
    struct stream *stream;
    static const uint32_t pages[] = {1000, 70007, 1001, 31234, 52001, 1002};
    for (unsigned i = 0; i < sizeof(pages) / sizeof(pages[0]); i++) {
        stream_fault(streams, &cache, pages[i], &stream);
    }
    CHECK(stream != NULL);
    streams_free(streams);
}

static void a_stream_may_go_down_or_jump(void)
{
    struct streams *streams = streams_new(READAHEAD_PAGES);
    struct stream *down = three_faults(streams, 5000, -1);
    CHECK(down != NULL);
    CHECK_EQUAL(down->stride, -1);
    struct stream *jumps = three_faults(streams, 9000, 16);
    CHECK(jumps != NULL);
    CHECK_EQUAL(jumps->stride, 16);
    CHECK(three_faults(streams, 40000, 513) == NULL); /* the faults are more than 2 MiB apart */
    streams_free(streams);
}

static void without_readahead_there_are_no_streams(void)
{
    struct streams *streams = streams_new(0);
    CHECK(three_faults(streams, 1002, 1) == NULL);
    streams_free(streams);
}

static void a_wish_begins_at_the_frontier_and_moves_it(void)
{
    struct streams *streams = streams_new(READAHEAD_PAGES);
    struct stream *stream = three_faults(streams, 1002, 1);
    struct stream_walk walk = stream_advance(streams, &cache, stream, 1002);
    struct stream_wish wish;
    CHECK(stream_wants(streams, &walk, &wish));
    CHECK_EQUAL(wish.page, 1003);
    CHECK(wish.n_pages > 0);
    CHECK(!wish.backwards);
    stream_covered(&walk, 2); /* less than the wish */
    CHECK_EQUAL(stream->frontier, 1005);
    CHECK(stream_hit(streams, 1004) == stream);
    streams_free(streams);
}

static void a_wish_of_a_stream_that_goes_down_is_backwards(void)
{
    struct streams *streams = streams_new(READAHEAD_PAGES);
    struct stream *stream = three_faults(streams, 5000, -1);
    struct stream_walk walk = stream_advance(streams, &cache, stream, 5000);
    struct stream_wish wish;
    CHECK(stream_wants(streams, &walk, &wish));
    CHECK_EQUAL(wish.page, 4999);
    CHECK(wish.backwards);
    stream_covered(&walk, wish.n_pages);
    CHECK_EQUAL(stream->frontier, 4999 - (int64_t)wish.n_pages);
    streams_free(streams);
}

static void a_stream_that_is_right_is_read_further_ahead_up_to_the_limit(void)
{
    struct streams *streams = streams_new(READAHEAD_PAGES);
    struct stream *stream = three_faults(streams, 1002, 1);
    uint32_t first = advance(streams, stream, 1002);
    uint32_t page = 1003;
    CHECK(first > 0);
    for (int i = 0; i < 12; i++) {
        CHECK(stream_hit(streams, page) == stream);
        advance(streams, stream, page);
        page = (uint32_t)stream->frontier - 1;
    }
    CHECK_EQUAL(stream->window, READAHEAD_PAGES);
    CHECK(stream->frontier - page <= 4 * READAHEAD_PAGES);
    streams_free(streams);
}

static void nothing_is_wished_for_outside_the_pool(void)
{
    struct streams *streams = streams_new(READAHEAD_PAGES);
    struct stream *stream = three_faults(streams, POOL_PAGES - 1, 1);
    CHECK_EQUAL(advance(streams, stream, POOL_PAGES - 1), 0);
    stream = three_faults(streams, 0, -1);
    CHECK_EQUAL(advance(streams, stream, 0), 0);
    streams_free(streams);
}

static void pages_that_left_unused_halve_the_window(void)
{
    struct streams *streams = streams_new(READAHEAD_PAGES);
    struct stream *stream = three_faults(streams, 1002, 1);
    for (uint32_t page = 1002; page < 1500; page += RUN_PAGES) {
        advance(streams, stream, page);
    }
    uint32_t window = stream->window;
    struct stream_cache wasted = cache;
    struct stream *other;
    wasted.n_wasted = 1;
    wasted.last_wasted = (uint32_t)stream->frontier - 1;
    stream_fault(streams, &wasted, 80000, &other);
    stream_fault(streams, &wasted, 80001, &other);
    stream_fault(streams, &wasted, 80002, &other);
    CHECK_EQUAL(stream->window, window / 2);
    streams_free(streams);
}

static void a_reader_is_read_ahead_for_where_it_turned_last_time(void)
{
    struct streams *streams = streams_new(READAHEAD_PAGES);
    struct stream *stream;
    /* The reader reads a piece of three blocks, and then another piece. */
    for (uint32_t i = 0; i < RUN_PAGES; i++) {
        stream_fault(streams, &cache, 1600 + i, &stream);
    }
    for (uint32_t i = 0; i < RUN_PAGES; i++) {
        stream_fault(streams, &cache, 8000 + i, &stream);
    }
    /* So many other pages were read that no stream is left, only the successor table. */
    memset(streams->list, 0, sizeof(streams->list));
    streams->reading = NULL;
    stream = three_faults(streams, 1602, 1);
    CHECK(stream != NULL);
    stream->frontier = 1600 + RUN_PAGES;
    struct stream_walk walk = stream_advance(streams, &cache, stream, 1600 + RUN_PAGES - 1);
    struct stream_wish wish;
    CHECK(stream_wants(streams, &walk, &wish));
    CHECK_EQUAL(wish.page, 8000);
    streams_free(streams);
}

static void faults_at_random_that_turn_out_to_be_a_stream_do_not_count(void)
{
    struct streams *streams = streams_new(READAHEAD_PAGES);
    struct stream *stream;
    stream_fault(streams, &cache, 70000, &stream);
    stream_note_random(streams, 5);
    stream_fault(streams, &cache, 1000, &stream);
    stream_note_random(streams, 6);
    stream_fault(streams, &cache, 1001, &stream);
    stream_note_random(streams, 7);
    CHECK_EQUAL(streams->random_ns, 7);
    stream_fault(streams, &cache, 1002, &stream);
    CHECK(stream != NULL);
    CHECK_EQUAL(streams->random_ns, 5);
    streams_free(streams);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(three_faults_in_line_make_a_stream),
        TEST(other_faults_in_between_do_not_matter),
        TEST(a_stream_may_go_down_or_jump),
        TEST(without_readahead_there_are_no_streams),
        TEST(a_wish_begins_at_the_frontier_and_moves_it),
        TEST(a_wish_of_a_stream_that_goes_down_is_backwards),
        TEST(a_stream_that_is_right_is_read_further_ahead_up_to_the_limit),
        TEST(nothing_is_wished_for_outside_the_pool),
        TEST(pages_that_left_unused_halve_the_window),
        TEST(a_reader_is_read_ahead_for_where_it_turned_last_time),
        TEST(faults_at_random_that_turn_out_to_be_a_stream_do_not_count),
    };
    return TESTS_RUN(tests, argc, argv);
}
