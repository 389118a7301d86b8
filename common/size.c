/* SPDX-License-Identifier: MIT */
#include "size.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Reads the digits at the start of text. strtoull() alone would accept signs and blanks before them. */
static int digits_parse(const char *text, const char **end, uint64_t *value)
{
    if (!isdigit((unsigned char)text[0])) {
        return -EINVAL;
    }
    char *stop;
    errno = 0;
    unsigned long long parsed = strtoull(text, &stop, 10);
    *end = stop;
    if (errno == ERANGE) {
        return -ERANGE;
    }
    *value = parsed;
    return 0;
}

/* Returns the shift for a suffix: 0 for "", 10 for "K" and "KiB", and so on; -1 if the text is not a suffix. */
static int suffix_shift(const char *suffix)
{
    static const char letters[] = "KMGT";
    if (suffix[0] == '\0') {
        return 0;
    }
    const char *letter = strchr(letters, toupper((unsigned char)suffix[0]));
    if (letter == NULL || (suffix[1] != '\0' && strcmp(suffix + 1, "iB") != 0)) {
        return -1;
    }
    return (int)(letter - letters + 1) * 10;
}

int size_parse(const char *text, uint64_t *bytes)
{
    const char *suffix;
    uint64_t value = 0;
    int rc = digits_parse(text, &suffix, &value);
    if (rc == -EINVAL) {
        return rc;
    }
    int shift = suffix_shift(suffix);
    if (shift < 0) {
        return -EINVAL;
    }
    if (rc == -ERANGE || value > ((uint64_t)INT64_MAX >> shift)) {
        return -ERANGE;
    }
    *bytes = value << shift;
    return 0;
}

const char *size_format(char text[SIZE_TEXT_BYTES], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    unsigned unit = 0;
    double value = (double)bytes;
    while (value >= 1024.0 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024.0;
        unit++;
    }
    if (value == (double)(uint64_t)value) {
        snprintf(text, SIZE_TEXT_BYTES, "%" PRIu64 " %s", (uint64_t)value, units[unit]);
    } else {
        snprintf(text, SIZE_TEXT_BYTES, "%.1f %s", value, units[unit]);
    }
    return text;
}

int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
    const char *end;
    uint64_t parsed = 0;
    int rc = digits_parse(text, &end, &parsed);
    if (rc == -EINVAL || *end != '\0') {
        return -EINVAL;
    }
    if (rc == -ERANGE || parsed < min || parsed > max) {
        return -ERANGE;
    }
    *value = parsed;
    return 0;
}
