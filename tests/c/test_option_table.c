/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "common/option_table.h"

#include <errno.h>

struct values {
    bool loud, ended;
    const char *name;
    unsigned count;
    uint64_t bytes;
    enum { RED, GREEN, BLUE } colour;
    unsigned n_taken;
};

static int even_take(void *values, const char *text, struct option_error *error)
{
    struct values *v = values;
    v->n_taken++;
    return v->count % 2 == 0 ? 0 : option_fail(error, "--count: %s is odd", text);
}

#define SETS(member) .offset = offsetof(struct values, member)

static const struct option_spec specs[] = {
    {"loud", NULL, OPTION_FLAG, SETS(loud), .help = "be loud"},
    {"end", NULL, OPTION_END, SETS(ended), .help = "read no further"},
    {"name", "NAME", OPTION_TEXT, SETS(name), .standard = "none", .help = "a name"},
    {"count", "N", OPTION_NUMBER, .min = 2, .max = 10, SETS(count), .take = even_take, .help = "an even number"},
    {"bytes", "SIZE", OPTION_SIZE, .min = 4096, .max = 1u << 20, .unit = 4096, SETS(bytes), .standard = "64K",
     .help = "pages"},
    {"colour", "red|green|blue", OPTION_CHOICE, SETS(colour), .standard = "green", .wrong = "no colour",
     .help = "which one"},
};

static const struct option_table table = {
    .usage = "usage\n",
    .specs = specs,
    .n_specs = sizeof(specs) / sizeof(specs[0]),
    .not_a_size = "not a size",
    .not_a_number = "not a number",
    .needs_value = "option '%s' needs a value",
    .not_an_option = "unexpected argument '%s'",
};

/* Reads up to three words. Returns the error, "" if there is none. */
static const char *read_words(struct values *values, const char *a, const char *b, const char *c)
{
    static struct option_error error;
    char words[4][64] = {"program"};
    char *argv[5] = {words[0]};
    int argc = 1;
    const char *given[] = {a, b, c};
    for (unsigned i = 0; i < 3 && given[i] != NULL; i++, argc++) {
        snprintf(words[argc], sizeof(words[argc]), "%s", given[i]);
        argv[argc] = words[argc];
    }
    *values = (struct values){0};
    error.text[0] = '\0';
    int rc = option_table_read(&table, values, argc, argv, &error);
    CHECK_EQUAL(rc, error.text[0] == '\0' ? 0 : -EINVAL);
    return error.text;
}

static void defaults_are_set_where_nothing_is_given(void)
{
    struct values values;
    CHECK_TEXT(read_words(&values, NULL, NULL, NULL), "");
    CHECK(!values.loud && !values.ended);
    CHECK_TEXT(values.name, "none");
    CHECK_EQUAL(values.count, 0);
    CHECK_EQUAL(values.bytes, 64u << 10);
    CHECK_EQUAL(values.colour, GREEN);
}

static void each_kind_sets_its_value(void)
{
    struct values values;
    CHECK_TEXT(read_words(&values, "--count=4", "--bytes", "1M"), "");
    CHECK_EQUAL(values.count, 4);
    CHECK_EQUAL(values.n_taken, 1);
    CHECK_EQUAL(values.bytes, 1u << 20);
    CHECK_TEXT(read_words(&values, "--loud", "--colour=blue", NULL), "");
    CHECK(values.loud);
    CHECK_EQUAL(values.colour, BLUE);
}

static void a_value_out_of_its_range_is_refused_with_the_range(void)
{
    struct values values;
    CHECK_TEXT(read_words(&values, "--count", "11", NULL), "--count: '11' is not a number from 2 to 10");
    CHECK_TEXT(read_words(&values, "--count", "x", NULL), "--count: 'x' is not a number from 2 to 10");
    CHECK_TEXT(read_words(&values, "--bytes", "5000", NULL),
               "--bytes: 5000 is not a multiple of 4096 between 4096 and 1048576");
    CHECK_TEXT(read_words(&values, "--bytes", "0", NULL),
               "--bytes: 0 is not a multiple of 4096 between 4096 and 1048576");
    CHECK_TEXT(read_words(&values, "--bytes", "much", NULL), "--bytes: 'much' is not a size");
    CHECK_TEXT(read_words(&values, "--colour", "re", NULL), "--colour: 're' is no colour");
    CHECK_TEXT(read_words(&values, "--colour", "red|green", NULL), "--colour: 'red|green' is no colour");
}

static void a_program_may_refuse_what_its_kind_takes(void)
{
    struct values values;
    CHECK_TEXT(read_words(&values, "--count", "5", NULL), "--count: 5 is odd");
}

static void words_that_are_no_options_are_named(void)
{
    struct values values;
    CHECK_TEXT(read_words(&values, "--size", "5", NULL), "unknown option '--size'");
    CHECK_TEXT(read_words(&values, "--count", NULL, NULL), "option '--count' needs a value");
    CHECK_TEXT(read_words(&values, "--loud", "more", NULL), "unexpected argument 'more'");
}

static void nothing_behind_an_end_is_read(void)
{
    struct values values;
    CHECK_TEXT(read_words(&values, "--end", "--nonsense", "more"), "");
    CHECK(values.ended);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(defaults_are_set_where_nothing_is_given),
        TEST(each_kind_sets_its_value),
        TEST(a_value_out_of_its_range_is_refused_with_the_range),
        TEST(a_program_may_refuse_what_its_kind_takes),
        TEST(words_that_are_no_options_are_named),
        TEST(nothing_behind_an_end_is_read),
    };
    return TESTS_RUN(tests, argc, argv);
}
