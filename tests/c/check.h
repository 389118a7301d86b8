/* SPDX-License-Identifier: MIT */
/*
 * Helpers for unit tests in C. A program has a table of tests, and runs all of them or those that its arguments name.
 * A check that fails prints its place and values; the test goes on, and the program ends with status 1.
 */
#ifndef GHOSTBOX_TESTS_C_CHECK_H
#define GHOSTBOX_TESTS_C_CHECK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct test {
    const char *name;
    void (*run)(void);
};
#define TEST(function)                                                                                               \
    {                                                                                                                \
#function, function                                                                                          \
    }

static unsigned n_failed_checks;

static inline void check_number(const char *place, const char *what, long long got, long long wanted)
{
    if (got != wanted) {
        printf("%s: %s is %lld (%#llx), not %lld (%#llx)\n", place, what, got, got, wanted, wanted);
        n_failed_checks++;
    }
}

static inline void check_text(const char *place, const char *what, const char *got, const char *wanted)
{
    if (strcmp(got, wanted) != 0) {
        printf("%s: %s is \"%s\", not \"%s\"\n", place, what, got, wanted);
        n_failed_checks++;
    }
}

#define CHECK_PLACE_(line)       __FILE__ ":" #line
#define CHECK_PLACE(line)        CHECK_PLACE_(line)
#define CHECK_EQUAL(got, wanted) check_number(CHECK_PLACE(__LINE__), #got, (long long)(got), (long long)(wanted))
#define CHECK_TEXT(got, wanted)  check_text(CHECK_PLACE(__LINE__), #got, got, wanted)
#define CHECK(condition)         check_number(CHECK_PLACE(__LINE__), #condition, !!(condition), 1)

static inline int tests_run(const struct test *tests, unsigned n_tests, int argc, char **argv)
{
    unsigned n_failed = 0;
    for (unsigned i = 0; i < n_tests; i++) {
        bool wanted = argc == 1;
        for (int k = 1; k < argc; k++) {
            wanted = wanted || strcmp(argv[k], tests[i].name) == 0;
        }
        if (wanted) {
            n_failed_checks = 0;
            tests[i].run();
            printf("%s %s\n", n_failed_checks == 0 ? "passed" : "FAILED", tests[i].name);
            n_failed += n_failed_checks == 0 ? 0 : 1;
        }
    }
    return n_failed == 0 ? 0 : 1;
}
#define TESTS_RUN(tests, argc, argv) tests_run(tests, sizeof(tests) / sizeof((tests)[0]), argc, argv)

#endif
