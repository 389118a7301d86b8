/* SPDX-License-Identifier: MIT */
/*
 * libghostbox-shim.so, preloaded into QEMU: hands the memory of the remote node to the pager.
 *
 * A process that maps no memfd called memory-backend-memfd MAP_SHARED is left alone: the shim makes no connection,
 * starts no thread, and passes all calls on. For each such mapping (a region):
 *
 *   interpose.c   mmap, munmap, mremap, madvise, fallocate: handles calls on regions, and passes the others on
 *   real_calls.c  the functions to which these calls are passed on
 *   local.c       the memory of node 0, and which of its discards do nothing
 *   outgoing.c    connect, sendto, sendmsg: what a guest on QEMU's own network may reach
 *   map.c         maps, registers and unmaps regions; the calling thread of QEMU runs this
 *   region.c      the table of regions
 *   discard.c     holes in the memory of a region, in agreement with the pager; on the calling thread
 *   serve.c       one thread for each region, all signals blocked: zaps pages for the pager, passes the pager's
 * answers to discards on, and connects again for as long as the region lives link.c        the socket, the handshake,
 * the checks of messages
 *
 * Failures: if the first region cannot be handed over, the process prints why and ends before the guest runs. If a
 * later one cannot (memory plugged in at run time), that mmap() fails and the guest goes on. If the pager ends, the
 * region stays registered, because the shim keeps its own userfaultfd: a thread that touches an absent page waits,
 * and never reads zeroes. A child made by fork() does not inherit regions (MADV_DONTFORK) and may not touch their
 * memfd.
 *
 * The shim allocates no memory after a region's thread has started; messages are on stacks.
 *
 * This file has the functions that stand in front of libc's. On a 64-bit system mmap and mmap64 (fallocate and
 * fallocate64) are one function with two names. _FILE_OFFSET_BITS would rename the first to the second, so it is
 * undefined here.
 */
#undef _FILE_OFFSET_BITS
#include "discard.h"
#include "local.h"
#include "map.h"
#include "real_calls.h"
#include "region.h"

#include <errno.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8 && sizeof(void *) == 8, "a 64-bit system");

#define EXPORT __attribute__((visibility("default")))

static void *refuse_map(int error)
{
    errno = error;
    return MAP_FAILED;
}

/*
 * Maps the memory of node 0. QEMU maps a fresh memfd private for it; the kernel would then keep each written page
 * twice, in the memfd and in the mapping, and never as a huge page. No other process has that memfd, so anonymous
 * memory does as well.
 */
static void *map_local(void *addr, size_t length, int prot, int flags)
{
    void *base = real.mmap(addr, length, prot, flags | MAP_ANONYMOUS, -1, 0);

    if (base != MAP_FAILED)
        local_add(base, length);
    return base;
}

static void *map(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    int saved_errno = errno;

    if ((flags & MAP_SHARED) && !(flags & MAP_ANONYMOUS) && fd >= 0 && memfd_is_remote(fd))
        return region_map(addr, length, prot, flags, fd, offset);
    bool is_local = (flags & MAP_PRIVATE) && !(flags & MAP_ANONYMOUS) && fd >= 0 && memfd_is_remote(fd);

    errno = saved_errno;
    /* No other memory may be mapped over a region, because zaps would hit it. */
    if ((flags & MAP_FIXED) && regions_any() && regions_overlap(addr, length))
        return refuse_map(EINVAL);
    if (flags & MAP_FIXED)
        local_forget(addr, length);
    if (is_local)
        return map_local(addr, length, prot, flags);
    return real.mmap(addr, length, prot, flags, fd, offset);
}

EXPORT void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    return map(addr, length, prot, flags, fd, offset);
}

EXPORT void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off64_t offset)
{
    return map(addr, length, prot, flags, fd, offset);
}

EXPORT int munmap(void *addr, size_t length)
{
    local_forget(addr, length);
    if (!regions_any() || !regions_overlap(addr, length))
        return real.munmap(addr, length);
    return regions_unmap(addr, length);
}

/* Regions are not moved, because a region that moves would lose its registration. */
EXPORT void *mremap(void *addr, size_t old_length, size_t new_length, int flags, ...)
{
    va_list args;

    va_start(args, flags);
    void *new_addr = (flags & MREMAP_FIXED) ? va_arg(args, void *) : NULL;

    va_end(args);
    if (regions_any() &&
        (regions_overlap(addr, old_length) || ((flags & MREMAP_FIXED) && regions_overlap(new_addr, new_length))))
        return refuse_map(EINVAL);
    local_forget(addr, old_length);
    if (flags & MREMAP_FIXED)
        local_forget(new_addr, new_length);
    return (void *)syscall(SYS_mremap, addr, old_length, new_length, flags, new_addr);
}

static int discard_at(struct region *region, const void *addr, size_t length)
{
    return region_discard(region, region->memfd_offset + ((uintptr_t)addr - region->base), length);
}

EXPORT int madvise(void *addr, size_t length, int advice)
{
    if (advice == MADV_DONTNEED && local_keeps(addr, length))
        return 0;
    if (!regions_any() || regions_are_parents())
        return real.madvise(addr, length, advice);
    if (advice == MADV_REMOVE) { /* it punches the file by address */
        struct region *region = region_take_at(addr, length);

        if (region) {
            int rc = discard_at(region, addr, length);

            region_release(region);
            return rc;
        }
    }
    /* A huge page would cover absent pages, and a child's mapping would not be registered. */
    if ((advice == MADV_HUGEPAGE || advice == MADV_DOFORK) && regions_overlap(addr, length))
        return 0;
    return real.madvise(addr, length, advice);
}

static int refuse_call(int error)
{
    errno = error;
    return -1;
}

static int allocate(int fd, int mode, off_t offset, off_t length)
{
    struct region *region = regions_any() && offset >= 0 && length > 0 ? region_take(fd) : NULL;

    if (!region)
        return real.fallocate(fd, mode, offset, length);
    int rc;

    if (regions_are_parents())
        rc = refuse_call(EIO);
    else if (mode & FALLOC_FL_PUNCH_HOLE)
        rc = region_discard(region, (uint64_t)offset, (uint64_t)length);
    else /* any other mode would put zeroes in place of pages that are on a donor */
        rc = refuse_call(EOPNOTSUPP);
    region_release(region);
    return rc;
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return allocate(fd, mode, offset, length);
}

EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    return allocate(fd, mode, offset, length);
}
