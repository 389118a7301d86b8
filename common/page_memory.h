/* SPDX-License-Identifier: MIT */
/*
 * Memory that holds the contents of a VM's pages: it is kept out of core dumps and, with --lock-memory, out of swap.
 *
 * GhostBox does not wipe this memory when it gives it back (munmap, MADV_DONTNEED), because the kernel zeroes each
 * page before another program gets it (docs/decisions.md, "Released memory is zeroed by the kernel").
 */
#ifndef GHOSTBOX_PAGE_MEMORY_H
#define GHOSTBOX_PAGE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

/* Leaves the range out of core dumps, and with it whatever else lies on its first and last page. */
void page_memory_hide(void *start, size_t bytes);

/*
 * Locks all memory of this process, that which it has and that which it will map, as it is touched, and checks that
 * `bytes` more may be mapped. Returns 0, or -errno with the reason and the remedy in text; then nothing is locked.
 */
int page_memory_lock(uint64_t bytes, char *text, size_t text_bytes);

/* Gives memory back as madvise(MADV_DONTNEED) does, even if it is locked. Returns 0 or -errno. */
int page_memory_release(void *start, size_t bytes);

#endif
