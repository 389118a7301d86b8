/* SPDX-License-Identifier: MIT */
/*
 * The options of a program as one table: their names, the values that they take, their defaults and their help. The
 * command line is read by this table and --help prints it, so that neither can lack an option that the other has.
 */
#ifndef GHOSTBOX_OPTION_TABLE_H
#define GHOSTBOX_OPTION_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum option_kind {
    OPTION_FLAG,   /* takes no value; sets a bool */
    OPTION_END,    /* the same, but no word after it is read: --help, --version */
    OPTION_TEXT,   /* sets a const char * that points into argv */
    OPTION_NUMBER, /* a whole number from min to max; sets an unsigned */
    OPTION_SIZE,   /* bytes from min to max in multiples of `unit`; sets a uint64_t */
    OPTION_CHOICE, /* one of the words in `value`, which are separated by '|'; sets an enum to the word's number */
    OPTION_OTHER,  /* sets nothing by itself; `take` sets what there is to set */
};

struct option_error {
    char text[256];
};

/* Writes what is wrong into error and returns -EINVAL. */
int option_fail(struct option_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

struct option_spec {
    const char *name;  /* without its dashes */
    const char *value; /* what --help calls the value; NULL: the option takes none */
    enum option_kind kind;
    bool for_tests; /* --help lists the option apart, as users have no use for it */
    uint64_t min, max;
    uint64_t unit;        /* of OPTION_SIZE: bytes; 0 means 1 */
    size_t offset;        /* place of the value in the program's own struct */
    const char *standard; /* the default, which is read before argv; NULL: there is none, or the program sets it */
    const char *wrong;    /* what a refused value is, such as "neither 1 nor 2"; NULL: the kind has words for it */
    const char *help;
    /* Called with each value, after it was set. Returns 0, or -EINVAL by option_fail(). NULL: nothing is called. */
    int (*take)(void *values, const char *text, struct option_error *error);
};

/* A program's options, and the words for what is wrong with them. */
struct option_table {
    const char *usage; /* the lines above the list in --help */
    const struct option_spec *specs;
    unsigned n_specs;
    const char *not_a_size;                  /* "not a size (examples: 64K, 4G)" */
    const char *not_a_number;                /* "not a whole number" */
    const char *needs_value, *not_an_option; /* printf(3) formats, each with a %s for the word of argv */
    const char *example;                     /* the lines below the list; NULL: none */
};

#define OPTIONS_MAX 64u

/*
 * Sets the defaults, and then what argv says, in `values`, the program's struct. Returns 0, or -EINVAL with the
 * reason in error. It uses getopt_long(), so only one thread may call it.
 */
int option_table_read(const struct option_table *table, void *values, int argc, char **argv,
                      struct option_error *error);

/* Reads a size by the rules of OPTION_SIZE; for options of kind OPTION_OTHER whose value contains a size. */
int option_size_read(const struct option_table *table, const struct option_spec *spec, const char *text,
                     uint64_t *bytes, struct option_error *error);

/* Prints the usage, each option with its range and default, the options for tests, and the example to stdout. */
void option_table_help(const struct option_table *table);

#endif
