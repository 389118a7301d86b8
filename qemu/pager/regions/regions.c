/* SPDX-License-Identifier: MIT */
#include "regions/regions.h"

#include "log.h"
#include "regions/recover.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Returns the first pool page of a free run of n_pages, or PAGE_NONE. */
static uint32_t find_room(const struct pager *pager, uint32_t n_pages)
{
    uint32_t first = 0;

    pager_assert_locked(pager);
    for (;;) {
        const struct region *in_the_way = NULL;

        for (uint32_t i = 0; i < REGIONS_MAX; i++) {
            const struct region *r = &pager->regions[i];

            if (r->in_use && r->first_page < first + n_pages && first < r->first_page + r->n_pages)
                in_the_way = r;
        }
        if (first + (uint64_t)n_pages > pager->table.n_pages)
            return PAGE_NONE;
        if (!in_the_way)
            return first;
        first = in_the_way->first_page + in_the_way->n_pages;
    }
}

static struct region *find_slot(struct pager *pager)
{
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        if (!pager->regions[i].in_use)
            return &pager->regions[i];
    return NULL;
}

static bool shape_valid(const struct gb_region *message, int memfd, struct stat *st)
{
    return message->page_bytes == PAGE_BYTES && message->length > 0 && message->length % PAGE_BYTES == 0 &&
           message->base % PAGE_BYTES == 0 && message->base + message->length > message->base &&
           message->memfd_offset % PAGE_BYTES == 0 && fstat(memfd, st) == 0 && st->st_size >= 0 &&
           message->length <= (uint64_t)st->st_size &&
           message->memfd_offset <= (uint64_t)st->st_size - message->length;
}

/*
 * Whether the descriptor is a userfaultfd that is set up and does not block. Any other descriptor could block the
 * fault thread in read(2), or wake it without end. poll(2) reports POLLERR for a userfaultfd that blocks or is not
 * set up.
 */
static bool uffd_valid(int uffd)
{
    static const char wanted[] = "anon_inode:[userfaultfd]";
    char path[64], link[sizeof(wanted)];
    struct pollfd fd = {.fd = uffd};

    snprintf(path, sizeof(path), "/proc/self/fd/%d", uffd);
    return readlink(path, link, sizeof(link)) == sizeof(wanted) - 1 &&
           memcmp(link, wanted, sizeof(wanted) - 1) == 0 && poll(&fd, 1, 0) >= 0 && !(fd.revents & POLLERR);
}

static void explain_no_room(const struct pager *pager, uint64_t n_pages, bool have_slot, char *text,
                            size_t text_bytes)
{
    uint64_t used = 0, leaving = 0;

    pager_assert_locked(pager);
    for (uint32_t i = 0; i < REGIONS_MAX; i++) {
        const struct region *r = &pager->regions[i];

        used += r->in_use ? r->n_pages : 0;
        leaving += r->in_use && r->leaving ? r->n_pages : 0;
    }
    int length = snprintf(text, text_bytes, "the region has %llu MiB, the donors together offer %llu MiB",
                          (unsigned long long)(n_pages >> (20 - PAGE_SHIFT)),
                          (unsigned long long)(pool_bytes(&pager->pool) >> 20));
    size_t at = (size_t)length;

    if (!have_slot)
        snprintf(text + at, text_bytes - at, " and too many regions are in use");
    else if (used > 0)
        snprintf(text + at, text_bytes - at, ", of which %llu MiB are in use (%llu MiB are being given back)",
                 (unsigned long long)(used >> (20 - PAGE_SHIFT)), (unsigned long long)(leaving >> (20 - PAGE_SHIFT)));
}

struct region *region_admit(struct pager *pager, const struct client *client, const struct gb_region *message,
                            const int fds[3], char *text, size_t text_bytes)
{
    uint64_t n_pages = message->length / PAGE_BYTES;
    struct stat memfd;

    if (!shape_valid(message, fds[1], &memfd)) {
        snprintf(text, text_bytes, "the region's address, length or memfd is not valid");
        errno = EINVAL;
        return NULL;
    }
    if (!uffd_valid(fds[0])) {
        snprintf(text, text_bytes, "the first descriptor is no userfaultfd that is set up and does not block");
        errno = EINVAL;
        return NULL;
    }
    pager_lock(pager);
    struct region *region = find_slot(pager);
    uint32_t first = n_pages < PAGE_NONE ? find_room(pager, (uint32_t)n_pages) : PAGE_NONE;

    if (!region || first == PAGE_NONE) {
        explain_no_room(pager, n_pages, region != NULL, text, text_bytes);
        pager_unlock(pager);
        errno = ENOSPC;
        return NULL;
    }
    *region = (struct region){
        .id = (uint32_t)(region - pager->regions),
        .in_use = true,
        .connected = true,
        .uffd = fds[0],
        .memfd = fds[1],
        .pagemap = fds[2],
        .pidfd = client->pidfd,
        .pid = client->pid,
        .base = message->base,
        .length = message->length,
        .memfd_offset = message->memfd_offset,
        .memfd_device = memfd.st_dev,
        .memfd_inode = memfd.st_ino,
        .first_page = first,
        .n_pages = (uint32_t)n_pages,
    };
    memcpy(region->comm, client->comm, sizeof(region->comm));
    state_put_region(&pager->state, region);
    pager_unlock(pager);
    atomic_store(&pager->client_seen, true);
    pager_wake_fault(pager);
    log_info("process %d (%s): %llu MiB of its memory are now served", region->pid, region->comm,
             (unsigned long long)(region->length >> 20));
    return region;
}

static bool is_same(const struct region *region, const struct client *client, const struct gb_region *message,
                    const struct stat *memfd)
{
    return region->in_use && !region->leaving && !region->connected && region->pid == client->pid &&
           region->base == message->base && region->length == message->length &&
           region->memfd_offset == message->memfd_offset && region->memfd_device == memfd->st_dev &&
           region->memfd_inode == memfd->st_ino;
}

/* Gives a region that an earlier pager served its descriptors and recovers its pages; from then on it is watched. */
static void take_over(struct pager *pager, struct region *region, const int fds[3])
{
    region->uffd = fds[0];
    region->memfd = fds[1];
    region->pagemap = fds[2];
    recover_region(pager, region);
    pager_lock(pager);
    region->awaited = false;
    pager_unlock(pager);
    pager_wake_fault(pager);
    pager_wake_evict(pager);
    log_info("process %d (%s): %llu MiB of its memory are served again", region->pid, region->comm,
             (unsigned long long)(region->length >> 20));
}

struct region *region_resumed(struct pager *pager, const struct client *client, const struct gb_region *message,
                              const int fds[3], bool *fds_taken)
{
    struct region *found = NULL;
    struct stat memfd;

    *fds_taken = false;
    if (!shape_valid(message, fds[1], &memfd) || !uffd_valid(fds[0]))
        return NULL;
    pager_lock(pager);
    for (uint32_t i = 0; i < REGIONS_MAX && !found; i++)
        if (is_same(&pager->regions[i], client, message, &memfd))
            found = &pager->regions[i];
    if (found)
        found->connected = true;
    pager_unlock(pager);
    if (found && found->awaited) {
        *fds_taken = true;
        take_over(pager, found, fds);
    }
    return found;
}

void region_end(struct pager *pager, struct region *region)
{
    log_info("process %d (%s): its memory is given up", region->pid, region->comm);
    if (region->awaited)
        recover_forget(pager, region);
    pager_lock(pager);
    region->leaving = true;
    state_set_region(&pager->state, region->id, STATE_REGION_LEAVING);
    pager_unlock(pager);
    pager_wake_fault(pager);
}
