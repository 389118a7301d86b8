/* SPDX-License-Identifier: MIT */
/*
 * Discards: QEMU gives memory back (balloon, free page reporting, unplug) by punching holes into the memfd. No event
 * of userfaultfd tells the pager, so it is asked first: DISCARD_BEGIN, wait for DISCARD_READY, the real call,
 * DISCARD_END. Without a pager the call fails with EIO and nothing is punched.
 */
#include "shim.h"

#include <errno.h>
#include <linux/falloc.h>
#include <string.h>

#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

static void waiter_remove(struct region *region, const struct waiter *waiter)
{
    struct waiter **link = &region->waiters;

    while (*link != waiter)
        link = &(*link)->next;
    *link = waiter->next;
}

/* Locked. Asks the pager and waits for its answer. */
static int discard_begin(struct region *region, struct gb_range_msg *message)
{
    struct waiter waiter = {.seq = ++region->last_seq, .next = region->waiters};

    if (region->sock < 0 || region->gone)
        return EIO;
    if (link_send(region->sock, message, GB_MSG_DISCARD_BEGIN, waiter.seq, sizeof(*message)) < 0)
        return EIO;
    region->waiters = &waiter;
    while (!waiter.answered)
        pthread_cond_wait(&region->answered, &region->lock);
    waiter_remove(region, &waiter);
    return waiter.error;
}

static int punch(const struct region *region, uint64_t offset, uint64_t length)
{
    int rc;

    do
        rc = real.fallocate(region->memfd, PUNCH, (off_t)offset, (off_t)length);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? errno : 0;
}

/* Whole pages, as an offset from the region's base. */
static int discard_pages(struct region *region, uint64_t offset, uint64_t length)
{
    struct gb_range_msg message = {.range = {offset, length}};

    pthread_mutex_lock(&region->lock);
    int error = discard_begin(region, &message);
    uint32_t seq = message.h.seq, connection = region->connection;

    pthread_mutex_unlock(&region->lock);
    if (error)
        return error;
    message.error = punch(region, region->memfd_offset + offset, length);
    pthread_mutex_lock(&region->lock);
    if (region->sock >= 0 && region->connection == connection)
        link_send(region->sock, &message, GB_MSG_DISCARD_END, seq, sizeof(message));
    pthread_mutex_unlock(&region->lock);
    return message.error;
}

static bool has_pager(struct region *region)
{
    pthread_mutex_lock(&region->lock);
    bool connected = region->sock >= 0;

    pthread_mutex_unlock(&region->lock);
    return connected;
}

/* Zeroes a part of a page through the mapping: the rest of the page may be with a donor. */
static void zero_part(const struct region *region, uint64_t from, uint64_t to)
{
    if (from < to)
        memset((void *)(uintptr_t)(region->base + from), 0, to - from);
}

/* Offsets from the region's base. */
static int discard_inside(struct region *region, uint64_t from, uint64_t to)
{
    uint64_t first = (from + REGION_PAGE_BYTES - 1) & ~(uint64_t)(REGION_PAGE_BYTES - 1);
    uint64_t end = to & ~(uint64_t)(REGION_PAGE_BYTES - 1);

    if (!has_pager(region))
        return EIO;
    if (first > end) { /* within one page */
        zero_part(region, from, to);
        return 0;
    }
    zero_part(region, from, first);
    zero_part(region, end, to);
    return first < end ? discard_pages(region, first, end - first) : 0;
}

int region_discard(struct region *region, uint64_t memfd_offset, uint64_t length)
{
    uint64_t begin = region->memfd_offset, end = begin + region->length;
    uint64_t from = memfd_offset, to = memfd_offset + length;
    int error = 0;

    /* What lies outside the mapping is no guest memory. */
    if (from < begin)
        error = punch(region, from, (to < begin ? to : begin) - from);
    if (!error && to > end)
        error = punch(region, from > end ? from : end, to - (from > end ? from : end));
    from = from < begin ? begin : from;
    to = to > end ? end : to;
    if (!error && from < to)
        error = discard_inside(region, from - begin, to - begin);
    if (!error)
        return 0;
    errno = error;
    return -1;
}
