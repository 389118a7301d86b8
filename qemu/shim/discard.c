/* SPDX-License-Identifier: MIT */
/*
 * Discards: QEMU gives memory back (balloon, free page reporting, unplug) by punching holes into the memfd. No event
 * of userfaultfd tells the pager, so the shim asks it first: it sends DISCARD_BEGIN, waits for DISCARD_READY, makes
 * the real call, sends DISCARD_END and waits for DISCARD_DONE. If the pager dies meanwhile, the discard begins again
 * with the next pager; if none comes for GRACE_S, the call fails with EIO.
 */
#include "discard.h"

#include "link.h"
#include "real_calls.h"
#include "say.h"

#include <errno.h>
#include <linux/falloc.h>
#include <string.h>

#define PUNCH   (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define GRACE_S 10
#define LOST    (-1)

static void waiter_remove(struct region *region, const struct waiter *waiter)
{
    struct waiter **link = &region->waiters;

    while (*link != waiter)
        link = &(*link)->next;
    *link = waiter->next;
}

/*
 * Waits until a pager is connected. Returns 0, or EIO if the region was unmapped, or the last connection ended
 * GRACE_S ago: until then another pager may follow one that died. With the region's lock.
 */
static int wait_for_pager(struct region *region)
{
    const struct timespec until = {.tv_sec = region->lost_at_s + GRACE_S};
    int rc = 0;

    while (region->sock < 0 && !region->gone && rc == 0)
        rc = pthread_cond_timedwait(&region->changed, &region->lock, &until);
    return region->sock < 0 || region->gone ? EIO : 0;
}

/*
 * Waits, a second at most, until the region's thread has noticed that the connection is broken, for which it needs
 * the lock. With the region's lock, which it releases meanwhile.
 */
static void wait_for_loss(struct region *region)
{
    uint32_t connection = region->connection;
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec++;
    while (region->sock >= 0 && region->connection == connection && !region->gone)
        if (pthread_cond_timedwait(&region->changed, &region->lock, &until) != 0)
            return;
}

/*
 * Sends a message and waits for its answer. Returns 0, an errno from the pager, or LOST. With the region's lock,
 * which it releases while it waits.
 */
static int ask(struct region *region, struct gb_range_msg *message, enum gb_msg_type type, uint32_t seq,
               enum gb_msg_type answer)
{
    struct waiter waiter = {.seq = seq, .type = (uint16_t)answer, .next = region->waiters};

    if (link_send(region->sock, message, type, seq, sizeof(*message)) < 0) {
        wait_for_loss(region);
        return LOST;
    }
    region->waiters = &waiter;
    while (!waiter.answered)
        pthread_cond_wait(&region->changed, &region->lock);
    waiter_remove(region, &waiter);
    return waiter.lost ? LOST : waiter.error;
}

static int punch(const struct region *region, uint64_t offset, uint64_t length)
{
    int rc;

    do
        rc = real.fallocate(region->memfd, PUNCH, (off_t)offset, (off_t)length);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? errno : 0;
}

/*
 * Makes one attempt. Returns 0, an errno, or LOST if the connection ended before DISCARD_DONE. With the region's
 * lock; a pager is connected.
 */
static int try_discard(struct region *region, uint64_t offset, uint64_t length)
{
    struct gb_range_msg message = {.range = {offset, length}};
    uint32_t seq = ++region->last_seq, connection = region->connection;
    int error = ask(region, &message, GB_MSG_DISCARD_BEGIN, seq, GB_MSG_DISCARD_READY);

    if (error)
        return error;
    /* While this thread holds the lock, no other pager takes over. */
    if (region->sock < 0 || region->connection != connection)
        return LOST;
    message.error = punch(region, region->memfd_offset + offset, length);
    error = ask(region, &message, GB_MSG_DISCARD_END, seq, GB_MSG_DISCARD_DONE);
    return error ? error : message.error;
}

/*
 * Discards whole pages, given as offsets from the region's base. A discard that one pager left undone begins again
 * with the next.
 */
static int discard_pages(struct region *region, uint64_t offset, uint64_t length)
{
    int error;

    pthread_mutex_lock(&region->lock);
    do {
        error = wait_for_pager(region);
        if (!error)
            error = try_discard(region, offset, length);
    } while (error == LOST);
    pthread_mutex_unlock(&region->lock);
    return error;
}

static int check_pager(struct region *region)
{
    pthread_mutex_lock(&region->lock);
    int error = wait_for_pager(region);

    pthread_mutex_unlock(&region->lock);
    return error;
}

/* Zeroes a part of a page through the mapping, because the rest of the page may be on a donor. */
static void zero_part(const struct region *region, uint64_t from, uint64_t to)
{
    if (from < to)
        memset((void *)(uintptr_t)(region->base + from), 0, to - from);
}

/* Discards a range, given as offsets from the region's base. */
static int discard_inside(struct region *region, uint64_t from, uint64_t to)
{
    uint64_t first = (from + REGION_PAGE_BYTES - 1) & ~(uint64_t)(REGION_PAGE_BYTES - 1);
    uint64_t end = to & ~(uint64_t)(REGION_PAGE_BYTES - 1);

    int error = check_pager(region);

    if (error)
        return error;
    if (first > end) { /* the range lies within one page */
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

    /* Parts of the memfd outside the mapping are no guest memory: they are punched without the pager. */
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
