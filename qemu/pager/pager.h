/* SPDX-License-Identifier: MIT */
/* What the pager's threads share. See main.c for who does what. */
#ifndef GHOSTBOX_PAGER_H
#define GHOSTBOX_PAGER_H

#include "control.h"
#include "histogram.h"
#include "kernel_features.h"
#include "options.h"
#include "pages.h"
#include "pool.h"
#include "rebuild.h"
#include "region.h"
#include "state.h"

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

/* Copies that did not give what was written to them: the fault thread tells the evict thread. */
#define SUSPECTS_MAX 64u

struct suspect {
    uint32_t extent, copy;
    uint64_t word;
};

struct suspects {
    pthread_mutex_t lock;
    struct suspect list[SUSPECTS_MAX];
    uint32_t n; /* more than there is room for are found again when they are read again */
};

/* When eviction starts and where it stops, in pages that are free of cache_pages. */
struct watermarks {
    int64_t low, high;
    int64_t inactive;  /* how many inactive pages to keep while under pressure */
    int64_t probation; /* how many mapped pages may stay on probation then */
};

struct pager {
    const struct options *options;
    struct features features;
    int device_fd; /* /dev/userfaultfd, handed to every shim */
    uint64_t started_ns;

    /*
     * The lock guards table, regions[] (in_use, connected, leaving, watched, page ranges), cache_pages,
     * reserve_pages, watermarks and what was wasted. It is held for list work only, never over a system call that
     * moves a page.
     */
    pthread_mutex_t lock;
    struct page_table table;
    struct region regions[REGIONS_MAX];
    int64_t cache_pages;
    int64_t reserve_pages; /* over it, while all that is here can go nowhere: takes.c */
    struct watermarks watermarks;
    uint64_t n_wasted; /* pages that were read ahead and left unused; the last of them */
    uint32_t last_wasted;

    struct pool pool;
    struct suspects suspects;
    struct rebuild_status rebuild_status;
    struct state state; /* the file that page table and regions are kept in, if any */
    int fault_wake_fd;  /* eventfd: frames are free, a region came or goes, stop */
    int listen_fd;      /* where shims connect */
    ino_t listen_inode; /* of its path */
    int evict_wake_fd;  /* eventfd: below the low watermark, a region was let go, stop */
    _Atomic bool evict_asked;
    _Atomic bool files_asked; /* runtime_dir.h */
    _Atomic bool stopping;
    pthread_mutex_t start; /* main holds it until every thread is there */
    _Atomic bool client_seen;
    _Atomic bool handing_over; /* nothing new is begun; once what is under way is done, the next pager may start */

    struct pager_counters counters;
    struct histogram fetch_latency, minor_latency, zero_latency; /* from the event to the waker */
    struct histogram request_latency, install_latency; /* of fetch: to the request; from the reply to the waker */
};

static inline void pager_lock(struct pager *pager)
{
    pthread_mutex_lock(&pager->lock);
}

static inline void pager_unlock(struct pager *pager)
{
    pthread_mutex_unlock(&pager->lock);
}

#define COUNT(counter, n) atomic_fetch_add_explicit(&(counter), (uint64_t)(n), memory_order_relaxed)

/* Locked: the region that holds a pool page. There is one for every page on a list. */
struct region *pager_region_of(struct pager *pager, uint32_t page);
/* Locked: recomputes the watermarks. */
void pager_set_cache(struct pager *pager, uint64_t cache_bytes);
/* Locked: pages that may still come in before the cache is full. */
static inline int64_t pager_free_pages(const struct pager *pager)
{
    return pager->cache_pages + pager->reserve_pages - pager->table.counts.present;
}
void pager_wake_fault(struct pager *pager);
/* Cheap when the evictor has been asked already. */
void pager_wake_evict(struct pager *pager);

/*
 * rebuild.c: a copy gave wrong bytes of this page, or an error, while another copy served: it is filled anew. Any
 * thread, with or without the lock.
 */
void pager_suspect(struct pager *pager, uint32_t page, uint32_t copy, uint64_t word);

/* recover.c: the regions of an earlier pager wait for their processes to come back. Before the threads start. */
void recover_regions(struct pager *pager);
/*
 * The process has come back and the region has its descriptors: every page gets a state that is true, and all who
 * wait are woken, so that faults that the earlier pager had taken are raised again.
 */
void recover_region(struct pager *pager, struct region *region);
/* The process of an awaited region has ended: its pages are as those of a region that was served here. */
void recover_forget(struct pager *pager, struct region *region);

/* Makes and opens the socket for shims: link.c. Returns 0 or -errno. */
int link_listen(struct pager *pager);

/*
 * Each thread has a loop, with all that it ever needs, made before the thread is: a thread that was started has
 * nothing left to fail for want of. Both return 0 or -errno.
 */
struct fault_loop;
struct evict_loop;
int fault_create(struct fault_loop **loop, struct pager *pager);
int evict_create(struct evict_loop **loop, struct pager *pager);
/* NULL is allowed. The thread has ended, or never was. */
void fault_destroy(struct fault_loop *loop);
void evict_destroy(struct evict_loop *loop);
/* The fault thread (fault_loop.c) and the evict thread (evict.c), of such a loop. */
void *fault_thread(void *loop);
void *evict_thread(void *loop);
/* Waits until every thread is there. False: one of them could not be started, so none begins. */
static inline bool pager_may_start(struct pager *pager)
{
    pthread_mutex_lock(&pager->start);
    bool stopping = atomic_load(&pager->stopping);

    pthread_mutex_unlock(&pager->start);
    return !stopping;
}
/* Control socket commands: status.c. */
extern const struct control_command pager_commands[];

#endif
