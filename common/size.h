/* SPDX-License-Identifier: MIT */
#ifndef GHOSTBOX_SIZE_H
#define GHOSTBOX_SIZE_H

#include <stdint.h>

/*
 * Reads a size such as "4096", "64K", "512M", "16G" or "1T" (also "64KiB", "512MiB", …; powers of 1024). Returns 0,
 * -EINVAL if the text is not a size, or -ERANGE if the bytes do not fit into int64_t.
 */
int size_parse(const char *text, uint64_t *bytes);

#define SIZE_TEXT_BYTES 24
/* Writes a size for people: 1610612736 as "1.5 GiB". Returns text. */
const char *size_format(char text[SIZE_TEXT_BYTES], uint64_t bytes);

/* Reads a whole decimal number. Returns 0, -EINVAL if the text is none, or -ERANGE if it is not in [min, max]. */
int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *value);

#endif
