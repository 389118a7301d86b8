/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "memserver/waiting.h"

#define MS UINT64_C(1000000)

/* A worker for which the test plays clock and load. */
struct worker {
    struct waiting waiting;
    uint64_t now_ns, n_requests;
};

static struct worker worker_that_may_spin(void)
{
    struct worker worker = {.now_ns = 1000 * MS};
    waiting_open(&worker.waiting, 100, false);
    return worker;
}

/* Plays n_ms of load: how many requests are served in each millisecond depends on how the worker waits. */
static void work(struct worker *worker, unsigned n_ms, uint64_t thrifty_per_ms, uint64_t eager_per_ms)
{
    for (unsigned i = 0; i < n_ms; i++) {
        worker->now_ns += MS;
        worker->n_requests += worker->waiting.eager ? eager_per_ms : thrifty_per_ms;
        waiting_note(&worker->waiting, worker->now_ns, worker->n_requests, false);
    }
}

static void it_is_eager_where_that_serves_a_third_more(void)
{
    struct worker worker = worker_that_may_spin();
    work(&worker, 40, 100, 140);
    CHECK(worker.waiting.eager);
    CHECK_EQUAL(waiting_spin_ns(&worker.waiting), 100000);
}

static void it_is_thrifty_where_that_serves_less_than_a_third_more(void)
{
    struct worker worker = worker_that_may_spin();
    work(&worker, 40, 100, 125);
    CHECK(waiting_is_settled(&worker.waiting, worker.now_ns));
    CHECK(!worker.waiting.eager);
    CHECK_EQUAL(waiting_spin_ns(&worker.waiting), 0);
}

static void a_tenth_more_is_enough_where_somebody_waits_for_each_reply(void)
{
    struct worker worker = worker_that_may_spin();
    worker.waiting.is_waited_for = true;
    work(&worker, 40, 100, 115);
    CHECK(worker.waiting.eager);
}

static void few_requests_are_no_load_to_be_eager_for(void)
{
    struct worker worker = worker_that_may_spin();
    for (unsigned i = 0; i < 100; i++) {
        work(&worker, 8, 0, 0);
        worker.n_requests++;
    }
    CHECK(!worker.waiting.eager);
}

static void a_pause_ends_being_eager_at_once(void)
{
    struct worker worker = worker_that_may_spin();
    work(&worker, 40, 100, 200);
    CHECK(worker.waiting.eager);
    waiting_rest(&worker.waiting, worker.now_ns + WAITING_GAP_MS * MS);
    CHECK(!worker.waiting.eager);
    CHECK(worker.waiting.eager_ns > 0);
}

static void after_a_pause_it_is_tried_anew(void)
{
    struct worker worker = worker_that_may_spin();
    work(&worker, 40, 100, 200);
    worker.now_ns += 20 * MS;
    work(&worker, 1, 100, 200);
    CHECK(!worker.waiting.eager);
    CHECK(!waiting_is_settled(&worker.waiting, worker.now_ns));
    work(&worker, 40, 100, 110);
    CHECK(!worker.waiting.eager);
}

static void a_confirmed_verdict_holds_longer(void)
{
    struct worker worker = worker_that_may_spin();
    work(&worker, 25, 100, 200);
    uint64_t first_ns = worker.waiting.settled_ns;
    work(&worker, 100, 100, 200);
    CHECK(worker.waiting.settled_ns >= 2 * first_ns);
    work(&worker, 5000, 100, 200);
    CHECK_EQUAL(worker.waiting.settled_ns, 256 * MS);
}

static void no_trial_begins_beside_another_one(void)
{
    struct worker worker = worker_that_may_spin();
    work(&worker, 25, 100, 200);
    CHECK(waiting_is_settled(&worker.waiting, worker.now_ns));
    for (unsigned i = 0; i < 500; i++) {
        worker.now_ns += MS;
        worker.n_requests += 100;
        waiting_note(&worker.waiting, worker.now_ns, worker.n_requests, true);
        CHECK(worker.waiting.eager); /* a trial would begin with a thrifty part */
    }
}

static void a_worker_that_may_neither_spin_nor_ask_stays_thrifty(void)
{
    struct worker worker = {.now_ns = 1000 * MS};
    waiting_open(&worker.waiting, 0, false);
    work(&worker, 1000, 100, 1000);
    CHECK(!worker.waiting.eager);
    CHECK(waiting_is_settled(&worker.waiting, worker.now_ns));
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(it_is_eager_where_that_serves_a_third_more),
        TEST(it_is_thrifty_where_that_serves_less_than_a_third_more),
        TEST(a_tenth_more_is_enough_where_somebody_waits_for_each_reply),
        TEST(few_requests_are_no_load_to_be_eager_for),
        TEST(a_pause_ends_being_eager_at_once),
        TEST(after_a_pause_it_is_tried_anew),
        TEST(a_confirmed_verdict_holds_longer),
        TEST(no_trial_begins_beside_another_one),
        TEST(a_worker_that_may_neither_spin_nor_ask_stays_thrifty),
    };
    return TESTS_RUN(tests, argc, argv);
}
