/* SPDX-License-Identifier: MIT */
#ifndef GHOSTBOX_MEMSERVER_FUZZ_DRIVE_H
#define GHOSTBOX_MEMSERVER_FUZZ_DRIVE_H

#include <stddef.h>
#include <stdint.h>

/* Plays one input to a connection of its own. Ends the process (assert) if an invariant is broken. */
void drive_input(const uint8_t *data, size_t size);

#endif
