/* SPDX-License-Identifier: MIT */
#include "region.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct regions regions = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void note_fork(void)
{
    regions.are_parents = regions.are_parents || atomic_load(&regions.n_mapped) > 0;
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, note_fork);
}

bool regions_any(void)
{
    return atomic_load_explicit(&regions.n_mapped, memory_order_relaxed) > 0;
}

bool regions_are_parents(void)
{
    return regions.are_parents;
}

bool memfd_is_remote(int fd)
{
    char path[64], link[sizeof(GB_MEMFD_LINK)];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, link, sizeof(link));

    return length == sizeof(GB_MEMFD_LINK) - 1 && memcmp(link, GB_MEMFD_LINK, (size_t)length) == 0;
}

bool regions_overlap(const void *addr, size_t length)
{
    bool found = false;

    if (regions.are_parents)
        return false;
    pthread_mutex_lock(&regions.lock);
    for (int i = 0; i < REGIONS_MAX; i++)
        found = found || region_overlaps(&regions.list[i], (uintptr_t)addr, region_round_up(length));
    pthread_mutex_unlock(&regions.lock);
    return found;
}

/* Returns the region of a memfd, or NULL. With the table's lock. */
static struct region *find_memfd(const struct stat *status)
{
    for (int i = 0; i < REGIONS_MAX; i++)
        if (regions.list[i].mapped && regions.list[i].dev == status->st_dev && regions.list[i].ino == status->st_ino)
            return &regions.list[i];
    return NULL;
}

struct region *region_take(int fd)
{
    struct stat status;

    if (fstat(fd, &status) < 0)
        return NULL;
    /*
     * In a child the lock may be held for ever by a thread that fork() did not copy; no thread changes the table
     * there.
     */
    if (regions.are_parents)
        return find_memfd(&status);
    pthread_mutex_lock(&regions.lock);
    struct region *region = find_memfd(&status);

    if (region)
        region->users++;
    pthread_mutex_unlock(&regions.lock);
    return region;
}

struct region *region_take_at(const void *addr, size_t length)
{
    struct region *found = NULL;

    if (regions.are_parents)
        return NULL;
    pthread_mutex_lock(&regions.lock);
    for (int i = 0; i < REGIONS_MAX && !found; i++)
        if (regions.list[i].mapped &&
            region_covers(regions.list[i].base, regions.list[i].length, (uintptr_t)addr, length))
            found = &regions.list[i];
    if (found)
        found->users++;
    pthread_mutex_unlock(&regions.lock);
    return found;
}

void region_close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void region_close_if_free(struct region *region)
{
    if (region->mapped || region->served || region->users)
        return;
    region_close_fd(&region->uffd);
    region_close_fd(&region->memfd);
    region_close_fd(&region->pagemap);
    pthread_mutex_destroy(&region->lock);
    pthread_cond_destroy(&region->changed);
}

void region_release(struct region *region)
{
    if (regions.are_parents)
        return;
    pthread_mutex_lock(&regions.lock);
    region->users--;
    region_close_if_free(region);
    pthread_mutex_unlock(&regions.lock);
}

void region_retire(struct region *region)
{
    pthread_mutex_lock(&regions.lock);
    region->served = false;
    region_close_if_free(region);
    pthread_mutex_unlock(&regions.lock);
}

static void cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attributes);
    pthread_condattr_destroy(&attributes);
}

struct region *region_slot_take(const struct stat *status, off_t offset, uint64_t length, struct text *text)
{
    struct region *region = NULL;

    pthread_mutex_lock(&regions.lock);
    for (int i = 0; i < REGIONS_MAX && !region; i++)
        if (!regions.list[i].mapped && !regions.list[i].served && !regions.list[i].users)
            region = &regions.list[i];
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
    pthread_mutex_unlock(&regions.lock);
    return region;
}

void region_slot_publish(struct region *region)
{
    pthread_mutex_lock(&regions.lock);
    region->mapped = true;
    atomic_fetch_add(&regions.n_mapped, 1);
    atomic_store(&regions.had_any, true);
    pthread_mutex_unlock(&regions.lock);
}
