/* SPDX-License-Identifier: MIT */
/* struct pager: what the pager's threads share. main.c says which threads there are and what each does. */
#ifndef GHOSTBOX_PAGER_H
#define GHOSTBOX_PAGER_H

#include "histogram.h"
#include "memory/kernel_features.h"
#include "memory/region.h"
#include "options.h"
#include "page/pages.h"
#include "pool/pool.h"
#include "pool/state.h"
#include "pool/suspects.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct pager_counters {
    _Atomic uint64_t missing_fetch, missing_zero, minor, wp, deferred, zero_filled, fault_around;
    _Atomic uint64_t readahead_issued, readahead_used, readahead_wasted;
    _Atomic uint64_t evicted_clean, evicted_dirty, evicted_zero, zapped, second_chance;
    _Atomic uint64_t discard_requests, discard_pages;
    _Atomic uint64_t foreign_pages, vanished_pages, poisoned;
    _Atomic uint64_t hedges_sent, hedges_won;
};

/* The watermarks of eviction, in pages. */
struct watermarks {
    int64_t low, high; /* eviction starts when fewer than `low` pages of the cache are free, and stops at `high` */
    int64_t inactive;  /* how many inactive pages the evict thread keeps ready while it evicts */
    int64_t probation; /* how many pages of streams, and how many on probation, may stay mapped meanwhile */
};

/* The rebuild, as other threads see it and ask for it. */
struct rebuild_status {
    _Atomic uint64_t rate; /* bytes a second; 0: no limit */
    _Atomic uint64_t done_bytes;
    _Atomic bool active;
    _Atomic uint32_t extents_left; /* extents that lack good copies */
    _Atomic bool asked;            /* a thread has asked for a new plan at once */
};

struct pager {
    const struct options *options;
    struct features features;
    int device_fd; /* /dev/userfaultfd, which is handed to each shim */
    uint64_t started_ns;

    /*
     * The lock guards table, regions[] (in_use, connected, leaving, awaited, watched, page ranges), cache_pages,
     * reserve_pages, watermarks, n_wasted and last_wasted. It is held for list work only, never over a system call
     * that moves a page.
     */
    pthread_mutex_t lock;
    struct page_table table;
    struct region regions[REGIONS_MAX];
    int64_t cache_pages;
    int64_t reserve_pages; /* pages over cache_pages that may come in while no page can leave: takes.c */
    struct watermarks watermarks;
    uint64_t n_wasted;    /* pages that were read ahead and left unused */
    uint32_t last_wasted; /* the last of these pages */

    struct pool pool;
    struct suspects suspects;
    struct rebuild_status rebuild_status;
    struct state state; /* the state file, which holds page table and regions, if there is one */
    int fault_wake_fd;  /* eventfd that wakes the fault thread: frames are free, a region came or goes, or stop */
    int listen_fd;      /* socket to which shims connect */
    ino_t listen_inode; /* of the socket's file that this process made */
    int evict_wake_fd;  /* eventfd that wakes the evict thread: frames are scarce, a region was let go, or stop */
    _Atomic bool evict_asked;
    _Atomic bool files_asked; /* removed sockets and a removed state file are to be made anew: runtime_dir.h */
    _Atomic bool stopping;
    pthread_mutex_t start;     /* the main thread holds it until all threads are started */
    _Atomic bool sandboxed;    /* the list of system calls is in force (common/sandbox.h) */
    _Atomic bool client_seen;  /* a region was registered */
    _Atomic bool handing_over; /* no work is begun any more; the process ends once the writes under way are done */

    struct pager_counters counters;
    struct histogram fetch_latency, minor_latency, zero_latency; /* from reading the event to waking the thread */
    /* The parts of a fetch: from the event to the request, and from the reply to waking the thread. */
    struct histogram request_latency, install_latency;
};

static inline void pager_lock(struct pager *pager)
{
    pthread_mutex_lock(&pager->lock);
}

static inline void pager_unlock(struct pager *pager)
{
    pthread_mutex_unlock(&pager->lock);
}

/*
 * Functions named …_unlocks are called with the lock; they release it around system calls and take it again. Other
 * functions that need the lock say so, or begin with pager_assert_locked(), which in builds with fault points ends
 * the process unless some thread holds the lock.
 */
static inline void pager_assert_locked(const struct pager *pager)
{
#ifdef GHOSTBOX_FAULT_POINTS
    assert(pthread_mutex_trylock(&((struct pager *)(uintptr_t)pager)->lock) == EBUSY);
#else
    (void)pager;
#endif
}

#define COUNT(counter, n) atomic_fetch_add_explicit(&(counter), (uint64_t)(n), memory_order_relaxed)

/* Returns the region that holds a pool page, or NULL. Each page on a list has a region. With the lock. */
struct region *pager_region_of(struct pager *pager, uint32_t page);
/* Sets the size of the cache and its watermarks. With the lock. */
void pager_set_cache(struct pager *pager, uint64_t cache_bytes);
/* Returns how many pages may come in before the cache is full; it may be negative. With the lock. */
static inline int64_t pager_free_pages(const struct pager *pager)
{
    return pager->cache_pages + pager->reserve_pages - pager->table.counts.present;
}
/* Wakes the fault thread. In any thread. */
void pager_wake_fault(struct pager *pager);
/* Wakes the evict thread, by no system call if it was asked already. In any thread. */
void pager_wake_evict(struct pager *pager);

/*
 * Reports a copy that gave wrong bytes of this page, or an error, while another copy served: the evict thread has it
 * filled anew. `word` is the copy's word when it was asked (copies.h). In any thread, with or without the lock.
 */
void pager_suspect(struct pager *pager, uint32_t page, uint32_t copy, uint64_t word);
/* Sets or clears PAGE_F_IO of a run of pages. Without the lock. */
void pager_mark_io(struct pager *pager, uint32_t page, uint32_t n, bool io);
/* Whether the donor's copies count: the donor is not lost, removed, draining, or away for --rebuild-after. */
bool pager_counts_on(const struct pager *pager, const struct donor *donor);

/* Makes locks and wake descriptors; the caller opens pool, table and state. Returns NULL with errno on errors. */
struct pager *pager_create(const struct options *options);
/* Frees the pager. With keep_state the state file stays, so that another pager can go on with it. */
void pager_destroy(struct pager *pager, bool keep_state);

/* Waits until all threads are started. Returns false if one could not be started: then none begins. */
static inline bool pager_may_start(struct pager *pager)
{
    pthread_mutex_lock(&pager->start);
    bool stopping = atomic_load(&pager->stopping);

    pthread_mutex_unlock(&pager->start);
    return !stopping;
}
#endif
