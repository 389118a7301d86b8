/* SPDX-License-Identifier: MIT */
#include "option_table.h"

#include "size.h"

#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define HELP_COLUMN 26u
#define HELP_WIDTH  110u
/* What getopt_long() returns for the first option: a number above those of all characters. */
#define FIRST_ID 256

int option_fail(struct option_error *error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof(error->text), format, args);
    va_end(args);
    return -EINVAL;
}

int option_size_read(const struct option_table *table, const struct option_spec *spec, const char *text,
                     uint64_t *bytes, struct option_error *error)
{
    int rc = size_parse(text, bytes);
    if (rc == -ERANGE) {
        return option_fail(error, "--%s: '%s' is too large", spec->name, text);
    }
    if (rc < 0) {
        return option_fail(error, "--%s: '%s' is %s", spec->name, text, table->not_a_size);
    }
    uint64_t unit = spec->unit > 0 ? spec->unit : 1;
    if (*bytes >= spec->min && *bytes <= spec->max && *bytes % unit == 0) {
        return 0;
    }
    if (unit > 1) {
        return option_fail(error, "--%s: %s is not a multiple of %" PRIu64 " between %" PRIu64 " and %" PRIu64,
                           spec->name, text, unit, spec->min, spec->max);
    }
    return *bytes < spec->min ? option_fail(error, "--%s: must be more than %" PRIu64, spec->name, spec->min - 1)
                              : option_fail(error, "--%s: '%s' is too large", spec->name, text);
}

static int number_read(const struct option_table *table, const struct option_spec *spec, const char *text,
                       unsigned *number, struct option_error *error)
{
    uint64_t value;
    if (number_parse(text, spec->min, spec->max, &value) == 0) {
        *number = (unsigned)value;
        return 0;
    }
    if (spec->wrong != NULL) {
        return option_fail(error, "--%s: '%s' is %s", spec->name, text, spec->wrong);
    }
    return option_fail(error, "--%s: '%s' is %s from %" PRIu64 " to %" PRIu64, spec->name, text, table->not_a_number,
                       spec->min, spec->max);
}

static int choice_read(const struct option_spec *spec, const char *text, unsigned *choice, struct option_error *error)
{
    *choice = 0;
    for (const char *word = spec->value;; (*choice)++) {
        size_t length = strcspn(word, "|");
        if (strlen(text) == length && strncmp(word, text, length) == 0) {
            return 0;
        }
        if (word[length] == '\0') {
            return option_fail(error, "--%s: '%s' is %s", spec->name, text, spec->wrong);
        }
        word += length + 1;
    }
}

static int value_take(const struct option_table *table, const struct option_spec *spec, void *values,
                      const char *text, struct option_error *error)
{
    void *place = (char *)values + spec->offset;
    int rc = 0;
    switch (spec->kind) {
    case OPTION_FLAG:
    case OPTION_END:
        *(bool *)place = true;
        break;
    case OPTION_TEXT:
        *(const char **)place = text;
        break;
    case OPTION_NUMBER:
        rc = number_read(table, spec, text, place, error);
        break;
    case OPTION_SIZE:
        rc = option_size_read(table, spec, text, place, error);
        break;
    case OPTION_CHOICE:
        rc = choice_read(spec, text, place, error);
        break;
    case OPTION_OTHER:
        break;
    }
    return rc == 0 && spec->take != NULL ? spec->take(values, text, error) : rc;
}

static int defaults_set(const struct option_table *table, void *values, struct option_error *error)
{
    int rc = 0;
    for (unsigned i = 0; i < table->n_specs && rc == 0; i++) {
        const struct option_spec *spec = &table->specs[i];
        if (spec->standard != NULL) {
            rc = value_take(table, spec, values, spec->standard, error);
            assert(rc == 0);
        }
    }
    return rc;
}

int option_table_read(const struct option_table *table, void *values, int argc, char **argv,
                      struct option_error *error)
{
    struct option options[OPTIONS_MAX + 1] = {0};
    assert(table->n_specs <= OPTIONS_MAX);
    for (unsigned i = 0; i < table->n_specs; i++) {
        int has_value = table->specs[i].value != NULL ? required_argument : no_argument;
        options[i] = (struct option){table->specs[i].name, has_value, NULL, FIRST_ID + (int)i};
    }
    int rc = defaults_set(table, values, error);
    optind = 0; /* with glibc getopt_long() then begins anew, whatever was read before */
    opterr = 0;
    int id = 0;
    /* With ':' first, getopt_long() returns ':' for a missing value and '?' for an unknown option. */
    while (rc == 0 && (id = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        if (id == '?') {
            return option_fail(error, "unknown option '%s'", argv[optind - 1]);
        }
        if (id == ':') {
            return option_fail(error, table->needs_value, argv[optind - 1]);
        }
        const struct option_spec *spec = &table->specs[id - FIRST_ID];
        rc = value_take(table, spec, values, optarg, error);
        if (spec->kind == OPTION_END) {
            return rc;
        }
    }
    return rc == 0 && optind < argc ? option_fail(error, table->not_an_option, argv[optind]) : rc;
}

/* Prints words, and breaks the line before a word that would not fit into HELP_WIDTH. */
static void words_print(const char *words, unsigned *column)
{
    while (*words != '\0') {
        size_t length = strcspn(words, " ");
        if (*column + length + 1 > HELP_WIDTH) {
            printf("\n%*s", (int)HELP_COLUMN - 1, "");
            *column = HELP_COLUMN - 1;
        }
        printf(" %.*s", (int)length, words);
        *column += (unsigned)length + 1;
        words += length + (words[length] == ' ' ? 1 : 0);
    }
}

/* Prints a range and a default, such as " (0 to 10000, default 50)". */
static void range_print(const struct option_spec *spec, unsigned *column)
{
    char text[128] = "", from[SIZE_TEXT_BYTES], to[SIZE_TEXT_BYTES];
    size_t length = 0;
    if (spec->kind == OPTION_NUMBER) {
        length = (size_t)snprintf(text, sizeof(text), "%" PRIu64 " to %" PRIu64, spec->min, spec->max);
    } else if (spec->kind == OPTION_SIZE && spec->max < INT64_MAX) {
        length = (size_t)snprintf(text, sizeof(text), "%s to %s", size_format(from, spec->min),
                                  size_format(to, spec->max));
    }
    if (spec->standard != NULL) {
        snprintf(text + length, sizeof(text) - length, "%sdefault %s", length > 0 ? ", " : "", spec->standard);
    }
    if (text[0] != '\0') {
        char all[sizeof(text) + 2];
        snprintf(all, sizeof(all), "(%s)", text);
        words_print(all, column);
    }
}

static void spec_print(const struct option_spec *spec)
{
    int column =
        printf("  --%s%s%s", spec->name, spec->value != NULL ? " " : "", spec->value != NULL ? spec->value : "");
    unsigned at = (unsigned)column;
    if (at >= HELP_COLUMN) {
        printf("\n");
        at = 0;
    }
    printf("%*s", (int)(HELP_COLUMN - 1 - at), "");
    at = HELP_COLUMN - 1;
    words_print(spec->help, &at);
    range_print(spec, &at);
    printf("\n");
}

void option_table_help(const struct option_table *table)
{
    fputs(table->usage, stdout);
    bool any_for_tests = false;
    for (unsigned i = 0; i < table->n_specs; i++) {
        any_for_tests = any_for_tests || table->specs[i].for_tests;
        if (!table->specs[i].for_tests) {
            spec_print(&table->specs[i]);
        }
    }
    if (any_for_tests) {
        puts("\nFor tests:");
    }
    for (unsigned i = 0; i < table->n_specs; i++) {
        if (table->specs[i].for_tests) {
            spec_print(&table->specs[i]);
        }
    }
    if (table->example != NULL) {
        fputs(table->example, stdout);
    }
}
