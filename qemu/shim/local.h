/* SPDX-License-Identifier: MIT */
/* Local memory: node 0, for which QEMU would have mapped a memfd private. See local.c. */
#ifndef GHOSTBOX_SHIM_LOCAL_H
#define GHOSTBOX_SHIM_LOCAL_H

#include <stdbool.h>
#include <stddef.h>

/* Notes that local memory was mapped. */
void local_add(const void *base, size_t length);
/*
 * Notes that this range is about to be unmapped or replaced: local memory that it overlaps counts as local no more.
 */
void local_forget(const void *addr, size_t length);
/*
 * Whether MADV_DONTNEED of this range does nothing, because it is a small piece of free memory that the guest
 * reports.
 */
bool local_keeps(const void *addr, size_t length);

#endif
