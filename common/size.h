/* SPDX-License-Identifier: MIT */
#ifndef GHOSTBOX_SIZE_H
#define GHOSTBOX_SIZE_H

#include <stdint.h>

/*
 * "4096", "64K", "512M", "16G", "1T" (also "64KiB", "512MiB", …; powers of 1024) → bytes.
 * Returns 0, -EINVAL (not a size) or -ERANGE (does not fit in int64_t).
 */
int size_parse(const char *text, uint64_t *bytes);

#define SIZE_TEXT_BYTES 24
/* 1610612736 → "1.5 GiB"; for people. Returns text. */
const char *size_format(char text[SIZE_TEXT_BYTES], uint64_t bytes);

/* Whole decimal numbers in [min, max]. Returns 0, -EINVAL or -ERANGE. */
int number_parse(const char *text, uint64_t min, uint64_t max, uint64_t *value);

#endif
