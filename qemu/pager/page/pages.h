/* SPDX-License-Identifier: MIT */
/*
 * The page table: the state of each page of remote memory.
 *
 * A page is known by its number in the pool (the donors' exports laid end to end in extents); a region of guest
 * memory is a run of pool pages. An entry has 16 bytes. The entry of an untouched page is all zero bits, so entries
 * of pages that were never touched take no memory.
 *
 *   state       in the memfd?  mapped in QEMU?  changed by            on list
 *   ABSENT      no             no               fault, discard        –
 *   WAITING     no             no               fault, discard        waiting
 *   FETCHING    no             no               fault                 –
 *   MAPPING     maybe          maybe            fault                 –        an ioctl is under way
 *   RESIDENT    yes            maybe            fault, evict, discard resident
 *   ZAPPING     yes            maybe            evict; fault may win  –        in the zap batch
 *   INACTIVE    yes            no               fault, evict, discard inactive
 *   WRITEBACK   yes            no               evict; fault may win  –        its bytes are on the way to the donor
 *   DROPPING    maybe          no               evict                 –        the hole is being punched
 *   DISCARDING  maybe          maybe            discard               –        QEMU is punching the hole
 *   POISONED    no             –                –                     –        its bytes are lost; access is SIGBUS
 *
 * "fault" and "evict" are threads; "discard" is the evict thread while it serves a discard. "fault may win" means
 * that a fault takes the page back to RESIDENT, which the evict thread sees when it comes back to the page.
 *
 * The table may lie in a file (state.h) from which another pager goes on if this one dies, at any instruction. So an
 * entry must be true at each instruction, whatever was done by then. Code that changes a page keeps three rules:
 *
 *   1. The state says what may be under way before it begins: MAPPING is set before the ioctl that maps, DROPPING
 * before the punch, WRITEBACK before the read. A state of rest (RESIDENT, INACTIVE, ABSENT) is set after the end.
 *   2. The flags that a state relies on are set before the state: dirty before RESIDENT or INACTIVE, on_donor
 *      after the ack and before DROPPING. The setters below keep this order. They are compiler barriers, which is
 *      enough: all stores of a process that is killed are in the file, in program order.
 *   3. A page loses PAGE_F_DIRTY only in state WRITEBACK (its donor has acked), DISCARDING or MAPPING (it is gone).
 *
 * recover.c says what each state means to a pager that takes the table over. All functions need the pager's lock.
 */
#ifndef GHOSTBOX_PAGES_H
#define GHOSTBOX_PAGES_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>

#define PAGE_BYTES 4096u
#define PAGE_SHIFT 12
#define PAGE_NONE  UINT32_MAX

enum page_state {
    PAGE_ABSENT = 0, /* the value of untouched memory */
    PAGE_WAITING,
    PAGE_FETCHING,
    PAGE_MAPPING,
    PAGE_RESIDENT,
    PAGE_ZAPPING,
    PAGE_INACTIVE,
    PAGE_WRITEBACK,
    PAGE_DROPPING,
    PAGE_DISCARDING,
    PAGE_POISONED,
    PAGE_STATES /* count */
};

enum page_flags {
    PAGE_F_DIRTY = 1 << 0,     /* the page differs, or may differ, from the bytes that the donor holds */
    PAGE_F_ON_DONOR = 1 << 1,  /* the donor holds bytes of this page (perhaps old ones) */
    PAGE_F_FORGOTTEN = 1 << 2, /* --contents keep: what the export held at the start no longer counts */
    PAGE_F_WANTED = 1 << 3,    /* a fault waits for the end of the current state */
    PAGE_F_READAHEAD = 1 << 4, /* the page was read ahead and is not used yet */
    PAGE_F_IO = 1 << 5,   /* a write or trim is under way: no other may start, and no discard may take the page */
    PAGE_F_HELD = 1 << 6, /* in DISCARDING: the page was in the memfd and counts as present */
    PAGE_F_SUM = 1 << 7,  /* `checksum` is that of the donor's bytes, unless the page is here and dirty */
};

struct page {
    uint32_t prev, next; /* list links, PAGE_NONE at the ends */
    uint8_t state;       /* enum page_state */
    uint8_t flags;       /* enum page_flags */
    /* What reclaim_policy.c knows of the page. */
    uint16_t left_at : 8; /* the epoch in which the page left the cache; 0: it never did */
    uint16_t history : 2; /* how often in a row the page came back not long after it had left */
    uint16_t rounds : 3;  /* rounds that are left to the page on the inactive list */
    uint16_t is_protected : 1;
    uint16_t is_stream : 1;  /* a stream brought the page in: most likely it is used once */
    uint16_t is_delayed : 1; /* the page has had its extra round for being dirty */
    uint32_t checksum;       /* of the bytes last sent to the donor; PAGE_F_SUM says whether there is one */
};
static_assert(sizeof(struct page) == 16, "memory per page is a promise (docs/reference/state-file.md)");

/* Classes of mapped pages. There is one list for each. */
enum reclaim_class { RECLAIM_STREAM, RECLAIM_PROBATION, RECLAIM_PROTECTED, RECLAIM_CLASSES };

struct page_list {
    uint32_t head, tail;
    uint32_t count;
};

struct page_counts {
    int64_t present;  /* pages in the memfds, or on the way there: never above the cache size */
    int64_t dirty;    /* pages with PAGE_F_DIRTY */
    int64_t on_donor; /* pages for which page_on_donor() is true */
    int64_t fetching;
    int64_t writeback;
    int64_t poisoned;
};

/* The pager's lock guards all fields. */
struct page_table {
    struct page *pages;
    uint32_t n_pages;
    bool keep;   /* --contents keep */
    bool shared; /* `pages` lie in the state file */
    bool fifo;   /* --fifo: pages leave in the order in which they came */
    struct page_list mapped[RECLAIM_CLASSES];
    struct page_list inactive, spent; /* spent: used by a stream and inactive again; these pages leave first */
    struct page_list waiting;
    /* For reclaim_policy.c. */
    uint64_t review_ns;   /* when the next protected page is zapped, although other pages could leave first */
    uint32_t epoch_pages; /* evictions in an epoch */
    struct page_epoch {
        uint32_t now, left; /* number of the epoch, from 1 on; evictions in it so far */
    } epochs[2];            /* of all other pages, and of stream pages */
    struct page_counts counts;
};

/*
 * Makes the table in `pages` (memory of a state file, which may have another pager's entries) or, if that is NULL, in
 * memory of its own. Returns 0 or -errno.
 */
int page_table_create(struct page_table *table, uint32_t n_pages, bool keep, struct page *pages);
void page_table_destroy(struct page_table *table);
/* Makes the entries of a run of pages untouched again. The pages are on no list, and in state ABSENT or POISONED. */
void page_table_forget(struct page_table *table, uint32_t first, uint32_t n_pages);

/* Puts a page at the end of a list. The page is on no list. */
void page_list_push(struct page_table *table, struct page_list *list, uint32_t page);
/* Takes a page off the list that it is on. */
void page_list_remove(struct page_table *table, struct page_list *list, uint32_t page);

/* Whether a donor holds bytes of the page: PAGE_F_ON_DONOR, or --contents keep and the page is not forgotten. */
bool page_on_donor(const struct page_table *table, uint32_t page);
void page_set_on_donor(struct page_table *table, uint32_t page, bool on_donor);
void page_set_dirty(struct page_table *table, uint32_t page, bool dirty);
/* Changes the state and the counts of states. The caller takes the page off lists and puts it on them. */
void page_set_state(struct page_table *table, uint32_t page, enum page_state state);
/* Whether a page at rest is in the memfd, and so counts as present. */
bool page_is_here(const struct page_table *table, uint32_t page);

#endif
