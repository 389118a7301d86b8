/* SPDX-License-Identifier: MIT */
/* The table of regions. */
#ifndef GHOSTBOX_SHIM_REGION_H
#define GHOSTBOX_SHIM_REGION_H

#include "proto.h"
#include "say.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

#define REGIONS_MAX       16
#define REGION_PAGE_BYTES 4096u

/*
 * A thread that waits in a discard for DISCARD_READY or DISCARD_DONE. It is on that thread's stack, and in the list
 * of its region.
 */
struct waiter {
    uint32_t seq;
    uint16_t type; /* of the answer */
    bool answered;
    bool lost; /* the connection ended before the answer came */
    int error;
    struct waiter *next;
};

struct region {
    /* The table's lock guards these. A slot is free if none of the three is set. */
    bool mapped;        /* the region is in QEMU's address space */
    bool served;        /* the region's thread runs, or is about to be started */
    unsigned int users; /* threads between region_take() and region_release() */

    /* These do not change while the slot is taken. */
    uint64_t base, length, memfd_offset;
    dev_t dev;
    ino_t ino;
    int uffd, memfd, pagemap;
    uint64_t register_modes, ioctls;

    /*
     * The lock guards the fields below. Lock order: the table's lock before this one. It is held while zapping, so
     * that an unmapped range is never zapped, and while punching, so that no pager looks at the memfd meanwhile.
     */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* an answer came, or a connection began or ended; its clock is CLOCK_MONOTONIC */
    int sock;               /* -1: no pager is connected */
    uint32_t connection;    /* number of the connection: an answer is valid on its own connection only */
    time_t lost_at_s;       /* when the last connection ended, CLOCK_MONOTONIC */
    bool gone;              /* the region is unmapped: its thread ends as soon as a pager knows */
    uint32_t last_seq;
    struct waiter *waiters;
};

struct regions {
    pthread_mutex_t lock;
    struct region list[REGIONS_MAX];
    _Atomic int n_mapped;
    _Atomic bool had_any; /* some region has been handed over */
    bool are_parents;     /* this process was made by fork(), and the regions are its parent's */
    char socket_path[256];
};
extern struct regions regions;

static inline uint64_t region_round_up(uint64_t bytes)
{
    return (bytes + REGION_PAGE_BYTES - 1) & ~(uint64_t)(REGION_PAGE_BYTES - 1);
}

static inline bool region_overlaps(const struct region *region, uint64_t start, uint64_t length)
{
    return region->mapped && start < region->base + region->length && region->base < start + length;
}

static inline bool region_covers(uint64_t start, uint64_t length, uint64_t inner, uint64_t inner_length)
{
    return start <= inner && inner + inner_length <= start + length;
}

/* Whether any region is mapped. */
bool regions_any(void);
/* Whether fd is the memfd of a node's memory, by its name. */
bool memfd_is_remote(int fd);
/* Whether any region overlaps this range. */
bool regions_overlap(const void *addr, size_t length);
/*
 * Whether this process is a child of the process that has the regions: then they are not mapped here, and their memfd
 * must not be touched.
 */
bool regions_are_parents(void);
/* Returns the region of this memfd, or NULL. The region's slot is kept until region_release(). */
struct region *region_take(int fd);
/* Returns the region that holds these addresses, or NULL. The region's slot is kept until region_release(). */
struct region *region_take_at(const void *addr, size_t length);
void region_release(struct region *region);
/* Says that the region's thread has ended, or was never started: then its slot may be used again. */
void region_retire(struct region *region);

/* The functions below are for map.c. */

/*
 * Takes a slot for a memfd. munmap() does not see it until region_slot_publish(). Returns NULL with a text if all
 * slots are in use.
 */
struct region *region_slot_take(const struct stat *status, off_t offset, uint64_t length, struct text *text);
/* Makes a slot's region known, after it was mapped. */
void region_slot_publish(struct region *region);
/* Closes the region's descriptors if its slot is free. With the table's lock. */
void region_close_if_free(struct region *region);
void region_close_fd(int *fd);

#endif
