/* SPDX-License-Identifier: MIT */
#include "pager.h"

#include "base/clock.h"
#include "log.h"
#include "page/reclaim_policy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct region *pager_region_of(struct pager *pager, uint32_t page)
{
    pager_assert_locked(pager);
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        if (pager->regions[i].in_use && region_holds(&pager->regions[i], page))
            return &pager->regions[i];
    return NULL;
}

static int64_t clamp(int64_t value, int64_t min, int64_t max)
{
    return value < min ? min : value > max ? max : value;
}

void pager_set_cache(struct pager *pager, uint64_t cache_bytes)
{
    int64_t pages = (int64_t)(cache_bytes / PAGE_BYTES);

    pager->cache_pages = pages;
    /* Free frames are unused memory, so the watermarks keep no more than faults need in order not to wait. */
    pager->watermarks.low = clamp(pages / 128, pages / 8 < 64 ? pages / 8 : 64, 4096);
    pager->watermarks.high = pager->watermarks.low * 2;
    pager->watermarks.inactive = pager->options->fifo ? 0 : pages / RECLAIM_INACTIVE_SHARE;
    pager->watermarks.probation = pages / 40;
    pager->table.fifo = pager->options->fifo;
    pager->table.epoch_pages = (uint32_t)clamp(pages / RECLAIM_EPOCHS, 1, UINT32_MAX);
    state_set_cache(&pager->state, cache_bytes);
}

static void wake(int fd)
{
    uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) < 0)
        log_error("wake descriptor: %s", strerror(errno));
}

void pager_wake_fault(struct pager *pager)
{
    wake(pager->fault_wake_fd);
}

void pager_wake_evict(struct pager *pager)
{
    if (!atomic_exchange(&pager->evict_asked, true))
        wake(pager->evict_wake_fd);
}

void pager_suspect(struct pager *pager, uint32_t page, uint32_t copy, uint64_t word)
{
    suspects_add(&pager->suspects, (struct suspect){page / pager->pool.extent_pages, copy, word});
    pager_wake_evict(pager);
}

void pager_mark_io(struct pager *pager, uint32_t page, uint32_t n, bool io)
{
    pager_lock(pager);
    for (uint32_t i = page; i < page + n; i++) {
        uint8_t *flags = &pager->table.pages[i].flags;

        *flags = (uint8_t)(io ? *flags | PAGE_F_IO : *flags & ~PAGE_F_IO);
    }
    pager_unlock(pager);
}

bool pager_counts_on(const struct pager *pager, const struct donor *donor)
{
    uint64_t away_ns = atomic_load(&donor->away_since_ns);
    uint64_t limit_ns = (uint64_t)pager->options->rebuild_after_s * 1000000000u;

    return !atomic_load(&donor->lost) && !atomic_load(&donor->removed) && !atomic_load(&donor->draining) &&
           (away_ns == 0 || clock_ns() < away_ns + limit_ns);
}

void pager_destroy(struct pager *pager, bool keep_state)
{
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        if (pager->regions[i].in_use)
            region_close_fds(&pager->regions[i]);
    pool_close(&pager->pool);
    page_table_destroy(&pager->table);
    state_close(&pager->state, keep_state);
    pthread_mutex_destroy(&pager->suspects.lock);
    pthread_mutex_destroy(&pager->start);
    pthread_mutex_destroy(&pager->lock);
    free(pager);
}

struct pager *pager_create(const struct options *options)
{
    struct pager *pager = calloc(1, sizeof(*pager));
    pthread_mutexattr_t attr;

    if (!pager)
        return NULL;
    pager->options = options;
    pager->device_fd = pager->listen_fd = pager->state.fd = -1;
    pager->started_ns = clock_ns();
    atomic_store(&pager->rebuild_status.rate, options->rebuild_rate);
    pager->fault_wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pager->evict_wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&pager->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    pthread_mutex_init(&pager->suspects.lock, NULL);
    pthread_mutex_init(&pager->start, NULL);
    if (pager->fault_wake_fd < 0 || pager->evict_wake_fd < 0) {
        int error = errno;

        pager_destroy(pager, false);
        errno = error;
        return NULL;
    }
    return pager;
}
