/* SPDX-License-Identifier: MIT */
/* Maps remote memory and hands it over, and unmaps it. On QEMU's calling thread. */
#ifndef GHOSTBOX_SHIM_MAP_H
#define GHOSTBOX_SHIM_MAP_H

#include <stddef.h>
#include <sys/types.h>

/*
 * Maps memory as mmap() does and hands it over to the pager. Returns MAP_FAILED with errno on errors, but ends the
 * process if no region has been handed over before.
 */
void *region_map(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
/* Unmaps memory as munmap() does, and ends the regions in the range. EINVAL if the range would cut a region. */
int regions_unmap(void *addr, size_t length);

#endif
