/* SPDX-License-Identifier: MIT */
#include "clock.h"
#include "evict.h"
#include "log.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DONORS_WAIT_NS 5000000000ull

/* The first pool page of a free run, or PAGE_NONE. With the lock. */
static uint32_t find_room(const struct pager *pager, uint32_t n_pages)
{
    uint32_t first = 0;

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
 * Anything else could make the fault thread wait in read(2), or never let it rest. For a userfaultfd that blocks, or
 * is not set up, poll(2) says POLLERR.
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

/* With the lock. */
static void explain_no_room(const struct pager *pager, uint64_t n_pages, bool have_slot, char *text,
                            size_t text_bytes)
{
    uint64_t used = 0, leaving = 0;

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

struct region *region_admit(struct evict_loop *loop, const struct link *link, const struct gb_region *message,
                            const int fds[3], char *text, size_t text_bytes)
{
    struct pager *pager = loop->pager;
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
        .pidfd = link->pidfd,
        .pid = link->pid,
        .base = message->base,
        .length = message->length,
        .memfd_offset = message->memfd_offset,
        .memfd_device = memfd.st_dev,
        .memfd_inode = memfd.st_ino,
        .first_page = first,
        .n_pages = (uint32_t)n_pages,
    };
    memcpy(region->comm, link->comm, sizeof(region->comm));
    state_put_region(&pager->state, region);
    pager_unlock(pager);
    atomic_store(&pager->client_seen, true);
    pager_wake_fault(pager);
    log_info("process %d (%s): %llu MiB of its memory are now served", region->pid, region->comm,
             (unsigned long long)(region->length >> 20));
    return region;
}

static bool is_same(const struct region *region, const struct link *link, const struct gb_region *message,
                    const struct stat *memfd)
{
    return region->in_use && !region->leaving && !region->connected && region->pid == link->pid &&
           region->base == message->base && region->length == message->length &&
           region->memfd_offset == message->memfd_offset && region->memfd_device == memfd->st_dev &&
           region->memfd_inode == memfd->st_ino;
}

/* A region that an earlier pager served gets its descriptors and true states. It is watched from then on. */
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

struct region *region_resumed(struct evict_loop *loop, const struct link *link, const struct gb_region *message,
                              const int fds[3], bool *fds_taken)
{
    struct pager *pager = loop->pager;
    struct region *found = NULL;
    struct stat memfd;

    *fds_taken = false;
    if (!shape_valid(message, fds[1], &memfd) || !uffd_valid(fds[0]))
        return NULL;
    pager_lock(pager);
    for (uint32_t i = 0; i < REGIONS_MAX && !found; i++)
        if (is_same(&pager->regions[i], link, message, &memfd))
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

static bool process_ended(const struct region *region)
{
    struct pollfd fd = {.fd = region->pidfd, .events = POLLIN};

    return poll(&fd, 1, 0) == 1;
}

/* With the lock. Takes the page off its list; false while another part of the pager holds it. */
static bool release_page(struct pager *pager, uint32_t page)
{
    struct page_table *table = &pager->table;

    if (!page_unlist(table, page))
        return false;
    if (page_is_here(table, page))
        table->counts.present--;
    page_set_dirty(table, page, false);
    page_set_state(table, page, PAGE_ABSENT);
    return true;
}

/* Returns whether no page of the region is here any more. Its process has ended and the fault thread has let go of
 * it. */
static bool dissolve(struct pager *pager, struct region *region)
{
    uint32_t end = region->first_page + region->n_pages;
    bool done = true;

    for (uint32_t page = region->first_page; page < end; page++) {
        /* In slices, so that faults of other regions get their turn. */
        if ((page - region->first_page) % 1024 == 0) {
            if (page > region->first_page)
                pager_unlock(pager);
            pager_lock(pager);
        }
        const struct page *p = &pager->table.pages[page];

        if (p->state == PAGE_ABSENT && p->flags == 0)
            continue;
        done = release_page(pager, page) && done;
    }
    pager_unlock(pager);
    return done;
}

/* The donors need not keep what nobody reads again, unless their contents were there before us. */
static bool tell_donors(struct evict_loop *loop, struct region *region)
{
    uint32_t left = region->n_pages - region->n_told;

    if (!loop->pager->table.keep)
        left -= writeback_forget(loop, region->first_page + region->n_told, left);
    else
        left = 0;
    region->n_told = region->n_pages - left;
    return left == 0;
}

/* After a takeover the donors are connected in the background: they are to hear of this, unless that takes too long.
 */
static bool donors_expected(const struct pager *pager)
{
    bool expected = false;

    for (uint32_t i = 0; i < pager->pool.n_donors; i++) {
        const struct donor *donor = &pager->pool.donors[i];

        expected = expected || (donor->channels[CHANNEL_WRITEBACK].inherited && !atomic_load(&donor->lost));
    }
    return expected && clock_ns() - pager->started_ns < DONORS_WAIT_NS;
}

static bool forgotten(struct pager *pager, const struct region *region)
{
    bool clear = true;

    pager_lock(pager);
    for (uint32_t page = region->first_page; page < region->first_page + region->n_pages && clear; page++)
        clear = !(pager->table.pages[page].flags & PAGE_F_IO);
    if (clear)
        page_table_forget(&pager->table, region->first_page, region->n_pages);
    pager_unlock(pager);
    return clear;
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

static void reap(struct evict_loop *loop, struct region *region)
{
    struct pager *pager = loop->pager;

    pager_lock(pager);
    bool watched = region->watched;

    pager_unlock(pager);
    if (watched)
        return;
    region->dissolved = region->dissolved || dissolve(pager, region);
    if (!region->dissolved || donors_expected(pager) || !tell_donors(loop, region) || !forgotten(pager, region))
        return;
    pager_lock(pager);
    region_close_fds(region);
    region->in_use = false;
    state_set_region(&pager->state, region->id, STATE_REGION_FREE);
    pager_unlock(pager);
}

bool regions_reap(struct evict_loop *loop)
{
    struct pager *pager = loop->pager;
    bool leaving = false;

    for (uint32_t i = 0; i < REGIONS_MAX; i++) {
        struct region *region = &pager->regions[i];

        if (!region->in_use)
            continue;
        /* A process that ends closes its connection, so the others need no look. */
        if (!region->leaving && !region->connected && process_ended(region))
            region_end(loop->pager, region);
        if (region->leaving)
            reap(loop, region);
        leaving = leaving || (region->in_use && region->leaving);
    }
    return leaving;
}
