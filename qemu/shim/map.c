/* SPDX-License-Identifier: MIT */
#include "map.h"

#include "link.h"
#include "real_calls.h"
#include "region.h"
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Ends a region that was unmapped. With the table's lock. */
static void let_go(struct region *region)
{
    region->mapped = false;
    atomic_fetch_sub(&regions.n_mapped, 1);
    pthread_mutex_lock(&region->lock);
    region->gone = true;
    serve_say_bye(region);
    pthread_cond_broadcast(&region->changed); /* wakes discards that wait for a pager */
    pthread_mutex_unlock(&region->lock);
    region_close_if_free(region);
}

/*
 * Takes, or releases, the locks of all regions in an address range, so that their threads do not zap while the range
 * is unmapped. With the table's lock.
 */
static void lock_covered(uint64_t start, uint64_t length, bool lock)
{
    for (int i = 0; i < REGIONS_MAX; i++) {
        if (!region_overlaps(&regions.list[i], start, length))
            continue;
        if (lock)
            pthread_mutex_lock(&regions.list[i].lock);
        else
            pthread_mutex_unlock(&regions.list[i].lock);
    }
}

static bool cuts_a_region(uint64_t start, uint64_t length)
{
    for (int i = 0; i < REGIONS_MAX; i++)
        if (region_overlaps(&regions.list[i], start, length) &&
            !region_covers(start, length, regions.list[i].base, regions.list[i].length))
            return true;
    return false;
}

int regions_unmap(void *addr, size_t length)
{
    uint64_t start = (uintptr_t)addr, bytes = region_round_up(length);
    int rc = -1;

    pthread_mutex_lock(&regions.lock);
    if (cuts_a_region(start, bytes)) {
        errno = EINVAL;
    } else {
        lock_covered(start, bytes, true);
        rc = real.munmap(addr, length);
        lock_covered(start, bytes, false);
    }
    for (int i = 0; i < REGIONS_MAX && rc == 0; i++)
        if (region_overlaps(&regions.list[i], start, bytes))
            let_go(&regions.list[i]);
    pthread_mutex_unlock(&regions.lock);
    return rc;
}

static int uffd_register(const struct region *region, uint64_t start, uint64_t length, uint64_t *ioctls)
{
    struct uffdio_register reg = {.range = {start, length}, .mode = region->register_modes};

    if (ioctl(region->uffd, UFFDIO_REGISTER, &reg) < 0)
        return -errno;
    *ioctls = reg.ioctls;
    return 0;
}

/* Makes a userfaultfd with the features that the pager asks for, and registers the region. Returns 0 or -errno. */
static int region_register(struct region *region, int device_fd, const struct gb_welcome *welcome, struct text *text)
{
    struct uffdio_api api = {.api = UFFD_API, .features = welcome->uffd_features};

    region->register_modes = welcome->register_modes;
    region->uffd = ioctl(device_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    if (region->uffd < 0) {
        int error = errno;

        text_set(text, "cannot make a userfaultfd from the device that the pager sent: %s", strerrordesc_np(error));
        return -error;
    }
    if (ioctl(region->uffd, UFFDIO_API, &api) < 0) {
        int error = errno;

        text_set(text, "this kernel's userfaultfd lacks features that the pager asks for (%#llx): %s",
                 (unsigned long long)welcome->uffd_features, strerrordesc_np(error));
        return -error;
    }
    int rc = uffd_register(region, region->base, region->length, &region->ioctls);

    if (rc < 0)
        text_set(text, "cannot register %llu bytes of guest memory with userfaultfd: %s",
                 (unsigned long long)region->length, strerrordesc_np(-rc));
    return rc;
}

/*
 * Turns huge pages off, which the kernel would make of absent pages, and keeps the mapping out of children: a child's
 * copy would not be registered, so that the child would read absent pages as zeroes.
 */
static int region_advise(const struct region *region, struct text *text)
{
    void *base = (void *)(uintptr_t)region->base;

    real.madvise(base, region->length, MADV_NOHUGEPAGE); /* it fails only if the kernel has no huge pages */
    if (real.madvise(base, region->length, MADV_DONTFORK) == 0)
        return 0;
    int error = errno;

    text_set(text, "cannot keep guest memory out of child processes: %s", strerrordesc_np(error));
    return -error;
}

static int find_pager(struct text *text)
{
    const char *path = getenv(GB_SOCKET_ENV);

    if (!path || !*path) {
        text_set(text, "%s is not set, so the remote memory has no pager", GB_SOCKET_ENV);
        return -EINVAL;
    }
    if (strlen(path) >= sizeof(regions.socket_path)) {
        text_set(text, "%s is longer than %zu bytes", GB_SOCKET_ENV, sizeof(regions.socket_path) - 1);
        return -ENAMETOOLONG;
    }
    memcpy(regions.socket_path, path, strlen(path) + 1);
    return 0;
}

/* Hands the region over to the pager: from the connection to REGION_OK. */
static int region_hand_over(struct region *region, struct text *text)
{
    struct gb_welcome welcome;
    int device_fd, sock;
    int rc = find_pager(text);

    if (rc < 0)
        return rc;
    sock = link_open(regions.socket_path, text);
    if (sock < 0)
        return sock;
    rc = link_hello(sock, 0, &welcome, &device_fd, text);
    if (rc == 0) {
        rc = region_register(region, device_fd, &welcome, text);
        close(device_fd);
    }
    if (rc == 0)
        rc = region_advise(region, text);
    if (rc == 0)
        rc = link_hand_over(sock, region, text);
    if (rc < 0) {
        close(sock);
        return rc;
    }
    link_set_timeout(sock, 0);
    region->sock = sock;
    return 0;
}

static int open_fds(struct region *region, int fd, struct text *text)
{
    struct statfs fs;

    if (fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC) {
        text_set(text, "the remote memory is on huge pages, which cannot be paged; leave them out for this node");
        return -EINVAL;
    }
    region->memfd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    region->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (region->memfd >= 0 && region->pagemap >= 0)
        return 0;
    int error = errno;

    text_set(text, "cannot open %s: %s", region->memfd < 0 ? "the memory again" : "/proc/self/pagemap",
             strerrordesc_np(error));
    return -error;
}

/* Ends the process if no region has been handed over before; otherwise only fails, because a guest may be running. */
static void *refuse(const struct text *text, int error)
{
    say("%s", text->s);
    if (!atomic_load(&regions.had_any) && !regions.are_parents)
        _exit(1);
    errno = error;
    return MAP_FAILED;
}

static void *map_new(const struct stat *status, void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    /* Memory that is populated before it is registered would all be zeroes. */
    int own_flags = flags & ~(MAP_POPULATE | MAP_LOCKED);
    struct text text;
    struct region *region = region_slot_take(status, offset, region_round_up(length), &text);

    if (!region)
        return refuse(&text, ENOMEM);
    void *base = real.mmap(addr, length, prot, own_flags, fd, offset);
    int rc = base == MAP_FAILED ? -errno : 0;

    if (rc < 0) {
        region_retire(region);
        errno = -rc;
        return MAP_FAILED;
    }
    region->base = (uintptr_t)base;
    rc = open_fds(region, fd, &text);
    if (rc == 0)
        rc = region_hand_over(region, &text);
    if (rc == 0) {
        region_slot_publish(region);
        rc = serve_start(region);
        if (rc == 0)
            return base;
        text_set(&text, "cannot start a thread: %s", strerrordesc_np(-rc));
        pthread_mutex_lock(&regions.lock);
        let_go(region);
        pthread_mutex_unlock(&regions.lock);
        region_close_fd(&region->sock);
    }
    real.munmap(base, length);
    region_retire(region);
    return refuse(&text, -rc);
}

/*
 * Maps pages of a region again in their place, as QEMU does after a memory error, and registers them again. An access
 * before that would make a zero page; but QEMU does this only in a reset, with all CPUs stopped.
 */
static void *map_in_place(struct region *region, void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    uint64_t ioctls;
    void *base;
    int rc = -1;

    pthread_mutex_lock(&region->lock);
    base = real.mmap(addr, length, prot, flags & ~(MAP_POPULATE | MAP_LOCKED), fd, offset);
    if (base != MAP_FAILED)
        rc = uffd_register(region, (uintptr_t)addr, region_round_up(length), &ioctls);
    if (rc == 0)
        real.madvise(addr, length, MADV_DONTFORK);
    else if (base != MAP_FAILED)
        base = real.mmap(addr, length, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_mutex_unlock(&region->lock);
    if (rc == 0 || base == MAP_FAILED)
        return base;
    say("cannot register memory that was mapped again: %s", strerrordesc_np(-rc));
    errno = -rc;
    return MAP_FAILED;
}

static bool is_in_place(const struct region *region, const void *addr, size_t length, int flags, off_t offset)
{
    uint64_t start = (uintptr_t)addr;

    return (flags & MAP_FIXED) && region_covers(region->base, region->length, start, region_round_up(length)) &&
           (uint64_t)offset - region->memfd_offset == start - region->base;
}

void *region_map(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    struct stat status;
    struct text text;
    void *base;

    if (fstat(fd, &status) < 0)
        return MAP_FAILED;
    if (regions.are_parents) {
        text_set(&text, "a child process maps remote memory, which only its parent may have");
        return refuse(&text, EPERM);
    }
    struct region *region = region_take(fd);

    if (!region)
        return map_new(&status, addr, length, prot, flags, fd, offset);
    if (is_in_place(region, addr, length, flags, offset)) {
        base = map_in_place(region, addr, length, prot, flags, fd, offset);
    } else {
        /* An access through an unregistered mapping would make a zero page. */
        text_set(&text, "remote memory is mapped a second time, which would corrupt it");
        base = refuse(&text, EBUSY);
    }
    region_release(region);
    return base;
}
