/* SPDX-License-Identifier: MIT */
/*
 * The calls that the shim stands in front of. On a 64-bit system mmap and mmap64 (fallocate and fallocate64) are one
 * function with two names; _FILE_OFFSET_BITS would rename the first into the second, so it is taken back here.
 */
#undef _FILE_OFFSET_BITS
#include "shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8 && sizeof(void *) == 8, "a 64-bit system");

#define EXPORT __attribute__((visibility("default")))

static void *system_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
}

static int system_munmap(void *addr, size_t length)
{
    return (int)syscall(SYS_munmap, addr, length);
}

static int system_madvise(void *addr, size_t length, int advice)
{
    return (int)syscall(SYS_madvise, addr, length, advice);
}

static int system_fallocate(int fd, int mode, off_t offset, off_t length)
{
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

/* dlsym may allocate and so map: it is never called from inside one of our functions. */
struct real_calls real = {system_mmap, system_munmap, system_madvise, system_fallocate};

static void *next_symbol(const char *name, void *otherwise)
{
    void *symbol = dlsym(RTLD_NEXT, name);

    return symbol ? symbol : otherwise;
}

__attribute__((constructor)) static void find_real_calls(void)
{
    struct real_calls found = {
        .mmap = next_symbol("mmap64", system_mmap),
        .munmap = next_symbol("munmap", system_munmap),
        .madvise = next_symbol("madvise", system_madvise),
        .fallocate = next_symbol("fallocate64", system_fallocate),
    };

    real = found;
}

static void *refuse_map(int error)
{
    errno = error;
    return MAP_FAILED;
}

/*
 * Node 0: QEMU maps its fresh memfd private, and the kernel then keeps each written page twice, in the memfd and in
 * the mapping, and never as a huge page. Nobody else has that memfd, so memory without it is the same.
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
    /* Over a region only the region's own pages may be mapped: zaps would hit anything else. */
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

/* A region that moves would lose its registration. */
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
    if (advice == MADV_REMOVE) { /* a punch by address */
        struct region *region = region_take_at(addr, length);

        if (region) {
            int rc = discard_at(region, addr, length);

            region_release(region);
            return rc;
        }
    }
    /* Huge pages would swallow absent ones, and a child's mapping would not be registered. */
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
    else /* would fill with zeroes what is with a donor */
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
