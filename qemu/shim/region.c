/* SPDX-License-Identifier: MIT */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct region table[REGIONS_MAX];
static _Atomic int n_mapped;
static _Atomic bool had_region; /* one was handed over, now or before */
static bool is_child;           /* set in a child of fork, which has one thread */
static char socket_path[256];

static void note_fork(void)
{
    is_child = is_child || atomic_load(&n_mapped) > 0;
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, note_fork);
}

bool regions_any(void)
{
    return atomic_load_explicit(&n_mapped, memory_order_relaxed) > 0;
}

bool regions_are_parents(void)
{
    return is_child;
}

const char *region_socket_path(void)
{
    return socket_path;
}

bool memfd_is_remote(int fd)
{
    char path[64], link[sizeof(GB_MEMFD_LINK)];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, link, sizeof(link));

    return length == sizeof(GB_MEMFD_LINK) - 1 && memcmp(link, GB_MEMFD_LINK, (size_t)length) == 0;
}

static uint64_t round_up(uint64_t bytes)
{
    return (bytes + REGION_PAGE_BYTES - 1) & ~(uint64_t)(REGION_PAGE_BYTES - 1);
}

static bool overlaps(const struct region *region, uint64_t start, uint64_t length)
{
    return region->mapped && start < region->base + region->length && region->base < start + length;
}

static bool covers(uint64_t start, uint64_t length, uint64_t inner, uint64_t inner_length)
{
    return start <= inner && inner + inner_length <= start + length;
}

bool regions_overlap(const void *addr, size_t length)
{
    bool found = false;

    if (is_child)
        return false;
    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < REGIONS_MAX; i++)
        found = found || overlaps(&table[i], (uintptr_t)addr, round_up(length));
    pthread_mutex_unlock(&table_lock);
    return found;
}

/* Locked. */
static struct region *find_memfd(const struct stat *status)
{
    for (int i = 0; i < REGIONS_MAX; i++)
        if (table[i].mapped && table[i].dev == status->st_dev && table[i].ino == status->st_ino)
            return &table[i];
    return NULL;
}

struct region *region_take(int fd)
{
    struct stat status;

    if (fstat(fd, &status) < 0)
        return NULL;
    /* In a child the lock may be held for ever by a thread that is not there; nothing else changes the table. */
    if (is_child)
        return find_memfd(&status);
    pthread_mutex_lock(&table_lock);
    struct region *region = find_memfd(&status);

    if (region)
        region->users++;
    pthread_mutex_unlock(&table_lock);
    return region;
}

struct region *region_take_at(const void *addr, size_t length)
{
    struct region *found = NULL;

    if (is_child)
        return NULL;
    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < REGIONS_MAX && !found; i++)
        if (table[i].mapped && covers(table[i].base, table[i].length, (uintptr_t)addr, length))
            found = &table[i];
    if (found)
        found->users++;
    pthread_mutex_unlock(&table_lock);
    return found;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Locked. */
static void close_if_free(struct region *region)
{
    if (region->mapped || region->served || region->users)
        return;
    close_fd(&region->uffd);
    close_fd(&region->memfd);
    close_fd(&region->pagemap);
    pthread_mutex_destroy(&region->lock);
    pthread_cond_destroy(&region->changed);
}

void region_release(struct region *region)
{
    if (is_child)
        return;
    pthread_mutex_lock(&table_lock);
    region->users--;
    close_if_free(region);
    pthread_mutex_unlock(&table_lock);
}

void region_retire(struct region *region)
{
    pthread_mutex_lock(&table_lock);
    region->served = false;
    close_if_free(region);
    pthread_mutex_unlock(&table_lock);
}

/* Locked. */
static void let_go(struct region *region)
{
    region->mapped = false;
    atomic_fetch_sub(&n_mapped, 1);
    pthread_mutex_lock(&region->lock);
    region->gone = true;
    serve_say_bye(region);
    pthread_cond_broadcast(&region->changed); /* a discard that waits for a pager */
    pthread_mutex_unlock(&region->lock);
    close_if_free(region);
}

/* Locked. Keeps the threads from zapping while the address range changes hands. */
static void lock_covered(uint64_t start, uint64_t length, bool lock)
{
    for (int i = 0; i < REGIONS_MAX; i++) {
        if (!overlaps(&table[i], start, length))
            continue;
        if (lock)
            pthread_mutex_lock(&table[i].lock);
        else
            pthread_mutex_unlock(&table[i].lock);
    }
}

static bool cuts_a_region(uint64_t start, uint64_t length)
{
    for (int i = 0; i < REGIONS_MAX; i++)
        if (overlaps(&table[i], start, length) && !covers(start, length, table[i].base, table[i].length))
            return true;
    return false;
}

int regions_unmap(void *addr, size_t length)
{
    uint64_t start = (uintptr_t)addr, bytes = round_up(length);
    int rc = -1;

    pthread_mutex_lock(&table_lock);
    if (cuts_a_region(start, bytes)) {
        errno = EINVAL;
    } else {
        lock_covered(start, bytes, true);
        rc = real.munmap(addr, length);
        lock_covered(start, bytes, false);
    }
    for (int i = 0; i < REGIONS_MAX && rc == 0; i++)
        if (overlaps(&table[i], start, bytes))
            let_go(&table[i]);
    pthread_mutex_unlock(&table_lock);
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

/* Makes the userfaultfd with what the pager asks for and registers the region. */
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
 * Huge pages would be put together from absent ones; a child's copy of the mapping would not be registered, and
 * read absent pages as zeroes.
 */
static int region_advise(const struct region *region, struct text *text)
{
    void *base = (void *)(uintptr_t)region->base;

    real.madvise(base, region->length, MADV_NOHUGEPAGE); /* fails only where the kernel has no huge pages */
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
    if (strlen(path) >= sizeof(socket_path)) {
        text_set(text, "%s is longer than %zu bytes", GB_SOCKET_ENV, sizeof(socket_path) - 1);
        return -ENAMETOOLONG;
    }
    memcpy(socket_path, path, strlen(path) + 1);
    return 0;
}

/* From the connection to REGION_OK. */
static int region_hand_over(struct region *region, struct text *text)
{
    struct gb_welcome welcome;
    int device_fd, sock;
    int rc = find_pager(text);

    if (rc < 0)
        return rc;
    sock = link_open(socket_path, text);
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

static void cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

/* Takes a slot for the memfd. The slot is unknown to munmap until it is marked as mapped. */
static struct region *slot_take(const struct stat *status, off_t offset, uint64_t length, struct text *text)
{
    struct region *region = NULL;

    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < REGIONS_MAX && !region; i++)
        if (!table[i].mapped && !table[i].served && !table[i].users)
            region = &table[i];
    if (region) {
        *region = (struct region){.served = true, .length = length, .memfd_offset = (uint64_t)offset};
        region->dev = status->st_dev;
        region->ino = status->st_ino;
        region->uffd = region->memfd = region->pagemap = region->sock = -1;
        pthread_mutex_init(&region->lock, NULL);
        cond_init(&region->changed);
    } else {
        text_set(text, "more than %d pieces of remote memory", REGIONS_MAX);
    }
    pthread_mutex_unlock(&table_lock);
    return region;
}

static void slot_publish(struct region *region)
{
    pthread_mutex_lock(&table_lock);
    region->mapped = true;
    atomic_fetch_add(&n_mapped, 1);
    atomic_store(&had_region, true);
    pthread_mutex_unlock(&table_lock);
}

/* Without a pager the first region ends the process; later ones only fail, for a guest may be running. */
static void *refuse(const struct text *text, int error)
{
    say("%s", text->s);
    if (!atomic_load(&had_region) && !is_child)
        _exit(1);
    errno = error;
    return MAP_FAILED;
}

static void *map_new(const struct stat *status, void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    /* Populated before it is registered, all of it would be zeroes. */
    int own_flags = flags & ~(MAP_POPULATE | MAP_LOCKED);
    struct text text;
    struct region *region = slot_take(status, offset, round_up(length), &text);

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
        slot_publish(region);
        rc = serve_start(region);
        if (rc == 0)
            return base;
        text_set(&text, "cannot start a thread: %s", strerrordesc_np(-rc));
        pthread_mutex_lock(&table_lock);
        let_go(region);
        pthread_mutex_unlock(&table_lock);
        close_fd(&region->sock);
    }
    real.munmap(base, length);
    region_retire(region);
    return refuse(&text, -rc);
}

/*
 * QEMU maps single pages of a region again, in their place, after a memory error: they need registering again. Until
 * that is done an access would make a zero page; QEMU does this in a reset only, with all CPUs stopped.
 */
static void *map_in_place(struct region *region, void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    uint64_t ioctls;
    void *base;
    int rc = -1;

    pthread_mutex_lock(&region->lock);
    base = real.mmap(addr, length, prot, flags & ~(MAP_POPULATE | MAP_LOCKED), fd, offset);
    if (base != MAP_FAILED)
        rc = uffd_register(region, (uintptr_t)addr, round_up(length), &ioctls);
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

    return (flags & MAP_FIXED) && covers(region->base, region->length, start, round_up(length)) &&
           (uint64_t)offset - region->memfd_offset == start - region->base;
}

void *region_map(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    struct stat status;
    struct text text;
    void *base;

    if (fstat(fd, &status) < 0)
        return MAP_FAILED;
    if (is_child) {
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
