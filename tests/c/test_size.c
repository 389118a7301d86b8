/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "common/size.h"

#include <errno.h>

static void check_size(const char *text, int rc, uint64_t bytes)
{
    uint64_t got = 0;
    CHECK_EQUAL(size_parse(text, &got), rc);
    CHECK_EQUAL(got, bytes);
}

static void sizes_are_powers_of_1024(void)
{
    check_size("0", 0, 0);
    check_size("4096", 0, 4096);
    check_size("64K", 0, 64u << 10);
    check_size("64k", 0, 64u << 10);
    check_size("512MiB", 0, 512u << 20);
    check_size("16G", 0, UINT64_C(16) << 30);
    check_size("1T", 0, UINT64_C(1) << 40);
}

static void what_is_no_size_is_refused(void)
{
    static const char *const wrong[] = {"", "-1", "+1", " 1", "1 ", "1KB", "1Ki", "K", "1.5G", "0x10", "1P", "many"};
    for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        check_size(wrong[i], -EINVAL, 0);
    }
}

static void a_size_fits_in_a_signed_number(void)
{
    check_size("9223372036854775807", 0, INT64_MAX);
    check_size("9223372036854775808", -ERANGE, 0);
    check_size("8388607T", 0, UINT64_C(8388607) << 40);
    check_size("8388608T", -ERANGE, 0);
    check_size("99999999999999999999999G", -ERANGE, 0);
}

static void numbers_are_decimal_and_in_their_range(void)
{
    uint64_t got = 0;
    CHECK_EQUAL(number_parse("10", 10, 20, &got), 0);
    CHECK_EQUAL(got, 10);
    CHECK_EQUAL(number_parse("20", 10, 20, &got), 0);
    CHECK_EQUAL(got, 20);
    CHECK_EQUAL(number_parse("9", 10, 20, &got), -ERANGE);
    CHECK_EQUAL(number_parse("21", 10, 20, &got), -ERANGE);
    CHECK_EQUAL(number_parse("99999999999999999999999", 10, 20, &got), -ERANGE);
    CHECK_EQUAL(number_parse("15K", 10, 20, &got), -EINVAL);
    CHECK_EQUAL(number_parse("-15", 10, 20, &got), -EINVAL);
    CHECK_EQUAL(number_parse("", 10, 20, &got), -EINVAL);
    CHECK_EQUAL(got, 20); /* errors leave the result as it was */
}

static void sizes_are_shown_in_the_largest_unit_that_they_fill(void)
{
    char text[SIZE_TEXT_BYTES];
    CHECK_TEXT(size_format(text, 0), "0 B");
    CHECK_TEXT(size_format(text, 1023), "1023 B");
    CHECK_TEXT(size_format(text, 1024), "1 KiB");
    CHECK_TEXT(size_format(text, 1610612736), "1.5 GiB");
    CHECK_TEXT(size_format(text, UINT64_C(64) << 40), "64 TiB");
    CHECK_TEXT(size_format(text, INT64_MAX), "8388608 TiB");
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(sizes_are_powers_of_1024),
        TEST(what_is_no_size_is_refused),
        TEST(a_size_fits_in_a_signed_number),
        TEST(numbers_are_decimal_and_in_their_range),
        TEST(sizes_are_shown_in_the_largest_unit_that_they_fill),
    };
    return TESTS_RUN(tests, argc, argv);
}
