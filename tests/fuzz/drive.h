/* SPDX-License-Identifier: MIT */
#ifndef GHOSTBOX_TESTS_FUZZ_DRIVE_H
#define GHOSTBOX_TESTS_FUZZ_DRIVE_H

#include <stddef.h>
#include <stdint.h>

/*
 * Each fuzz target has this function: it plays one input from a fresh state, and ends the process (assert) if an
 * invariant is broken. With fuzz.c it becomes a libFuzzer program, with replay.c a program that plays files.
 */
void drive_input(const uint8_t *data, size_t size);

#endif
