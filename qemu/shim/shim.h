/* SPDX-License-Identifier: MIT */
/*
 * libghostbox-shim.so, preloaded into QEMU: hands the memory of the remote node to the pager.
 *
 * A process that maps no memfd called memory-backend-memfd MAP_SHARED is left alone: nothing connects, no thread is
 * started, every call goes straight on. For each such mapping (a region):
 *
 *   interpose.c  mmap, munmap, mremap, madvise, fallocate: what a region needs to know of, everything else passes on
 *   local.c      the memory of node 0, and which of its discards are passed over
 *   outgoing.c   connect, sendto, sendmsg: what a guest on QEMU's own network may reach
 *   region.c     the table of regions, registration, discards; the calling thread of QEMU runs this
 *   serve.c      one thread a region, all signals blocked: zaps what the pager names, passes on its answers to
 *                discards, and connects again for as long as the region lives
 *   link.c       the socket, the handshake, the checks of what comes in
 *
 * What dies when: if the first region cannot be handed over, the process says why and ends before the guest runs. If
 * a later one cannot (memory plugged in at run time), that mmap fails and the guest goes on. If the pager goes away,
 * the region stays registered, because the shim keeps its own userfaultfd: whoever touches an absent page waits, and
 * never reads zeroes. A child made by fork does not inherit regions (MADV_DONTFORK) and may not touch their memfd.
 *
 * Nothing here allocates after a region's thread has started; messages live on stacks.
 */
#ifndef GHOSTBOX_SHIM_H
#define GHOSTBOX_SHIM_H

#include "proto.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define REGIONS_MAX       16
#define REGION_PAGE_BYTES 4096u
#define TEXT_BYTES        512

/* Why something failed, for the user. */
struct text {
    char s[TEXT_BYTES];
};

/* One caller of fallocate that waits for DISCARD_READY or DISCARD_DONE; lives on its stack, listed in its region. */
struct waiter {
    uint32_t seq;
    uint16_t type; /* of the answer */
    bool answered;
    bool lost; /* the connection ended instead */
    int error;
    struct waiter *next;
};

struct region {
    /* Guarded by the table's lock. A slot is free when none of the three is set. */
    bool mapped;        /* QEMU has it in its address space */
    bool served;        /* its thread runs */
    unsigned int users; /* callers inside region_discard */

    /* Fixed while the slot is taken. */
    uint64_t base, length, memfd_offset;
    dev_t dev;
    ino_t ino;
    int uffd, memfd, pagemap;
    uint64_t register_modes, ioctls;

    /*
     * Lock order: the table's lock before this one. Held while zapping, so that an unmapped range is never zapped,
     * and while punching, so that no pager looks at the memfd meanwhile.
     */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* an answer came, or the connection did or went; its clock is CLOCK_MONOTONIC */
    int sock;               /* -1 while there is no pager */
    uint32_t connection;    /* counts connections: an answer belongs to one */
    time_t lost_at_s;       /* when the last one ended */
    bool gone;              /* unmapped: the thread ends as soon as a pager knows */
    uint32_t last_seq;
    struct waiter *waiters;
};

/* The functions behind ours, the next in the order of libraries; before our constructor runs, the system calls. */
struct real_calls {
    void *(*mmap)(void *, size_t, int, int, int, off_t);
    int (*munmap)(void *, size_t);
    int (*madvise)(void *, size_t, int);
    int (*fallocate)(int, int, off_t, off_t);
};
extern struct real_calls real;

/* say.c: no allocation, one write(2) to stderr. */
__attribute__((format(printf, 2, 3))) void text_set(struct text *text, const char *format, ...);
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/* link.c: return an fd or 0, or -errno with the reason in text. */
int link_open(const char *path, struct text *text);
int link_hello(int sock, uint32_t flags, struct gb_welcome *welcome, int *device_fd, struct text *text);
int link_hand_over(int sock, const struct region *region, struct text *text);
int link_send(int sock, void *message, enum gb_msg_type type, uint32_t seq, uint32_t bytes);
/* Waits for one message; 0 when it is whole and of our protocol. */
int link_receive(int sock, void *buf, size_t buf_bytes, struct text *text);
void link_set_timeout(int sock, unsigned int seconds);

/* region.c */
bool regions_any(void);
/* Whether fd is memory of the remote node, by its name. */
bool memfd_is_remote(int fd);
/* Maps it and hands it over. Ends the process if that fails and no other region lives. */
void *region_map(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
/* munmap; the regions in the range are let go. EINVAL if it would cut a region. */
int regions_unmap(void *addr, size_t length);
bool regions_overlap(const void *addr, size_t length);
/* A child of the process that has the regions: they are not mapped here, and their memfd must not be touched. */
bool regions_are_parents(void);
/* The region of this memfd, or the one that holds these addresses, for a discard; NULL if there is none. */
struct region *region_take(int fd);
struct region *region_take_at(const void *addr, size_t length);
void region_release(struct region *region);
/* As fallocate(PUNCH_HOLE) over a range of the memfd, in agreement with the pager; -1 with errno. */
int region_discard(struct region *region, uint64_t memfd_offset, uint64_t length);
/* The thread has ended: its slot may be used again. */
void region_retire(struct region *region);
const char *region_socket_path(void);

/* local.c: memory that QEMU would have mapped private from a memfd. */
void local_add(const void *base, size_t length);
/* What overlaps this range is about to be unmapped or replaced. */
void local_forget(const void *addr, size_t length);
/* Whether MADV_DONTNEED of this range is to do nothing: a small piece of free memory that the guest reports. */
bool local_keeps(const void *addr, size_t length);

/* serve.c */
int serve_start(struct region *region);
/* Locked. Tells the pager, if there is one, that the region is unmapped; if it must, the thread tells the next one.
 */
void serve_say_bye(struct region *region);

#endif
