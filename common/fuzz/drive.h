/* SPDX-License-Identifier: MIT */
#ifndef GHOSTBOX_COMMON_FUZZ_DRIVE_H
#define GHOSTBOX_COMMON_FUZZ_DRIVE_H

#include <stddef.h>
#include <stdint.h>

/*
 * What a fuzz target is: it plays one input from a fresh state, and ends the process (assert) if an invariant is
 * broken. With fuzz.c it makes a libFuzzer program, with replay.c one that plays files.
 */
void drive_input(const uint8_t *data, size_t size);

#endif
