/* SPDX-License-Identifier: MIT */
/*
 * One region of guest memory: a memfd that QEMU maps MAP_SHARED and that is registered with a userfaultfd of QEMU's
 * address space. The pager never maps the memfd: it reads by pread() (a hole reads as zeroes and stays a hole) and
 * writes whole pages by pwrite(), so it cannot make a zero page by accident.
 */
#ifndef GHOSTBOX_REGION_H
#define GHOSTBOX_REGION_H

#include "memory/kernel_features.h"
#include "page/pages.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define REGIONS_MAX 16

struct region {
    uint32_t id;
    bool in_use;    /* the pager's lock guards this and the next four */
    bool connected; /* the shim's thread is connected: zaps are possible */
    bool leaving;   /* the process has ended, or has let go of the memory; the fault thread must stop watching */
    bool
        awaited; /* an earlier pager served it, and its process has not connected yet: pidfd is the only descriptor */
    bool watched; /* the fault thread has the region's userfaultfd in its epoll */
    int uffd, memfd, pagemap, pidfd;
    pid_t pid;
    char comm[16];
    uint64_t base, length, memfd_offset;
    uint64_t memfd_device, memfd_inode;
    uint32_t first_page, n_pages; /* in the pool */
    bool dissolved;               /* while leaving: no page of the region is in the memfd (evict thread only) */
    uint32_t n_told;              /* while leaving: pages that the donors were told to forget (evict thread only) */
};

static inline uint64_t region_address(const struct region *region, uint32_t page)
{
    return region->base + (uint64_t)(page - region->first_page) * PAGE_BYTES;
}

static inline bool region_holds(const struct region *region, uint32_t page)
{
    return page >= region->first_page && page - region->first_page < region->n_pages;
}

/* Returns how many pages there are from this page, itself included, to the end or the beginning of its region. */
static inline uint32_t region_left(const struct region *region, uint32_t page, bool backwards)
{
    uint32_t before = page - region->first_page;

    return backwards ? before + 1 : region->n_pages - before;
}

/*
 * The functions below take pool pages of this region and return 0 or -errno, unless they say something else. Only the
 * fault thread maps pages (region_copy(), region_zero(), region_continue()). *done is how many pages of the run are
 * finished, also after an error. Each wakes the threads that wait for the pages that it finishes.
 */
int region_copy(const struct region *region, uint32_t page, const void *bytes, uint32_t n, uint32_t *done);
int region_zero(const struct region *region, uint32_t page, uint32_t n, uint32_t *done);
int region_continue(const struct region *region, uint32_t page, uint32_t n, bool write_protect, uint32_t *done);
int region_unprotect(const struct region *region, uint32_t page);
int region_poison(const struct region *region, uint32_t page);
void region_wake(const struct region *region, uint32_t page, uint32_t n);

/* These read and write n pages of the memfd. Less than n pages is an error. */
int region_read(const struct region *region, uint32_t page, void *bytes, uint32_t n);
int region_write(const struct region *region, uint32_t page, const void *bytes, uint32_t n);
/* Punches n pages out of the memfd. */
int region_punch(const struct region *region, uint32_t page, uint32_t n);
/* Whether the page is in the memfd. */
bool region_has_page(const struct region *region, uint32_t page);
/*
 * Returns how many of the n pages from this one on are alike, and in *here whether they are in the memfd or holes; or
 * -errno if the kernel does not say.
 */
int64_t region_run(const struct region *region, uint32_t page, uint32_t n, bool *here);
/* Sets written[i] to whether page + i may have been written since it was mapped write-protected. n is at most 512. */
int region_written(const struct region *region, uint32_t page, uint32_t n, bool *written);

/* Closes all descriptors of the region. */
void region_close_fds(struct region *region);

#endif
