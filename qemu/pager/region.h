/* SPDX-License-Identifier: MIT */
/*
 * One region of guest memory: a memfd that QEMU maps MAP_SHARED and that is registered with a userfaultfd of QEMU's
 * address space. The pager never maps the memfd: it reads with pread (a hole reads as zeroes and stays a hole) and
 * writes whole pages with pwrite, so it cannot make a zero page by accident.
 */
#ifndef GHOSTBOX_REGION_H
#define GHOSTBOX_REGION_H

#include "kernel_features.h"
#include "pages.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define REGIONS_MAX 16

struct region {
    uint32_t id;
    bool in_use;    /* guarded by the pager's lock, like the next four */
    bool connected; /* the shim's thread listens: zaps are possible */
    bool leaving;   /* the process has ended; the fault thread must let go of it */
    bool awaited;   /* an earlier pager served it; its process has not come back so far: no descriptors but pidfd */
    bool watched;   /* the fault thread has its userfaultfd in its epoll */
    int uffd, memfd, pagemap, pidfd;
    pid_t pid;
    char comm[16];
    uint64_t base, length, memfd_offset;
    uint64_t memfd_device, memfd_inode;
    uint32_t first_page, n_pages; /* in the pool */
    bool dissolved;               /* leaving: no page of it is here any more (evict thread only) */
    uint32_t n_told;              /* leaving: so many pages the donors may forget (evict thread only) */
};

static inline uint64_t region_address(const struct region *region, uint32_t page)
{
    return region->base + (uint64_t)(page - region->first_page) * PAGE_BYTES;
}

static inline bool region_holds(const struct region *region, uint32_t page)
{
    return page >= region->first_page && page - region->first_page < region->n_pages;
}

/* How many pages there are from this one, itself included, to the end or the beginning of its region. */
static inline uint32_t region_left(const struct region *region, uint32_t page, bool backwards)
{
    uint32_t before = page - region->first_page;

    return backwards ? before + 1 : region->n_pages - before;
}

/*
 * All of these take pool pages of this region. The ones on runs return 0 or -errno, with *done the pages that were
 * finished before. All wake whoever waits on the pages they finish.
 */
int region_copy(const struct region *region, uint32_t page, const void *bytes, uint32_t n, uint32_t *done);
int region_zero(const struct region *region, uint32_t page, uint32_t n, uint32_t *done);
int region_continue(const struct region *region, uint32_t page, uint32_t n, bool write_protect, uint32_t *done);
int region_unprotect(const struct region *region, uint32_t page);
int region_poison(const struct region *region, uint32_t page);
void region_wake(const struct region *region, uint32_t page, uint32_t n);

/* The memfd. Reading or writing less than n pages is an error. */
int region_read(const struct region *region, uint32_t page, void *bytes, uint32_t n);
int region_write(const struct region *region, uint32_t page, const void *bytes, uint32_t n);
int region_punch(const struct region *region, uint32_t page, uint32_t n);
bool region_has_page(const struct region *region, uint32_t page);
/* How many of the n pages from this one on are alike: all in the memfd, or none of them. -errno if nobody can tell.
 */
int64_t region_run(const struct region *region, uint32_t page, uint32_t n, bool *here);
/* written[i] = whether page + i may have been written since it was mapped write-protected. n <= 512. */
int region_written(const struct region *region, uint32_t page, uint32_t n, bool *written);

void region_close_fds(struct region *region);

#endif
