/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "base/own_delay.h"
#include "common/log.h"
#include "donor/latency.h"

#define MS      UINT64_C(1000000)
#define SLOW_NS (50 * MS)

/*
 * What own_delay_since() returns in place of the kernel's count: the thread did not run for busy_ns from busy_from_ns
 * on.
 */
static uint64_t busy_from_ns, busy_ns;

uint64_t own_delay_since(uint64_t then_ns)
{
    uint64_t end_ns = busy_from_ns + busy_ns;
    return then_ns >= end_ns ? 0 : end_ns - (then_ns > busy_from_ns ? then_ns : busy_from_ns);
}

void own_delay_mark(void)
{
}

static struct donor *new_donor(void)
{
    static struct donor donor;
    memset(&donor, 0, sizeof(donor));
    donor.uri = "nbd://donor/a";
    busy_from_ns = busy_ns = 0;
    return &donor;
}

/* Counts n answers; their requests were sent a second after each other. */
static void answers(struct donor *donor, unsigned n, uint64_t took_ns)
{
    for (unsigned i = 1; i <= n; i++) {
        latency_sample(donor, i * 1000 * MS, took_ns, SLOW_NS);
    }
}

static void a_donor_whose_answers_take_long_is_slow(void)
{
    struct donor *donor = new_donor();
    answers(donor, 20, 80 * MS);
    CHECK(donor->slow);
}

static void two_late_answers_of_three_hundred_are_an_accident(void)
{
    struct donor *donor = new_donor();
    answers(donor, 298, MS);
    answers(donor, 2, 80 * MS);
    CHECK(!donor->slow);
    answers(donor, 10, 80 * MS);
    CHECK(donor->slow);
}

static void few_answers_say_nothing(void)
{
    struct donor *donor = new_donor();
    answers(donor, 15, 80 * MS);
    CHECK(!donor->slow);
}

static void the_time_for_which_the_thread_did_not_run_is_taken_off(void)
{
    struct donor *donor = new_donor();
    for (unsigned i = 1; i <= 20; i++) {
        busy_from_ns = i * 1000 * MS;
        busy_ns = 75 * MS;
        latency_sample(donor, i * 1000 * MS, 80 * MS, SLOW_NS);
    }
    CHECK(!donor->slow);
    CHECK(donor->smoothed_us < 6000);
}

static void a_delay_from_before_the_request_excuses_nothing(void)
{
    struct donor *donor = new_donor();
    busy_from_ns = 100 * MS;
    busy_ns = 800 * MS;
    answers(donor, 20, 80 * MS);
    CHECK(donor->slow);
}

static void a_donor_is_slow_no_more_when_its_answers_are_quick_again(void)
{
    struct donor *donor = new_donor();
    answers(donor, 20, 80 * MS);
    CHECK(donor->slow);
    for (unsigned i = 1; i < 20 && donor->slow; i++) {
        answers(donor, 100, MS);
        latency_decay(donor, i * 10000 * MS, SLOW_NS);
    }
    CHECK(!donor->slow);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(a_donor_whose_answers_take_long_is_slow),
        TEST(two_late_answers_of_three_hundred_are_an_accident),
        TEST(few_answers_say_nothing),
        TEST(the_time_for_which_the_thread_did_not_run_is_taken_off),
        TEST(a_delay_from_before_the_request_excuses_nothing),
        TEST(a_donor_is_slow_no_more_when_its_answers_are_quick_again),
    };
    log_open("test-latency", NULL, LOG_ERROR);
    return TESTS_RUN(tests, argc, argv);
}
