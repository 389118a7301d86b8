/* SPDX-License-Identifier: MIT */
/*
 * The state of every page of remote memory.
 *
 * A page is known by its number in the pool (the donors' exports laid end to end in extents); a region of guest
 * memory is a run of pool pages. 16 bytes a page; memory of never-touched pages is not populated, because the state
 * of an untouched page is all zero bits.
 *
 *   state       in the memfd?  mapped in QEMU?  who may change it     on list
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
 * "fault may win": a fault takes the page back to RESIDENT and the evictor, when it returns to it, sees that.
 *
 * The table may lie in a file (state.h) from which another pager goes on if this one dies, at any instruction. So
 * what lies there must never lie about the page, whatever was or was not done yet. Three rules for whoever changes a
 * page:
 *
 *   1. The state says what may be under way before it is: MAPPING before the ioctl that maps, DROPPING before the
 *      punch, WRITEBACK before the read. A state of rest (RESIDENT, INACTIVE, ABSENT) is set after it.
 *   2. The flags that a state relies on are set before the state: dirty before RESIDENT or INACTIVE, on_donor after
 * the ack and before DROPPING. The setters below keep this order (they are compiler barriers; that is enough, for
 * what a killed process had stored, all of it in program order, is in the file).
 *   3. A page loses PAGE_F_DIRTY only in state WRITEBACK (its donor has acked), DISCARDING or MAPPING (it is gone).
 *
 * recover.c has the other half: what each state means to a pager that finds it.
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
    PAGE_F_DIRTY = 1 << 0,     /* differs, or may differ, from what the donor holds */
    PAGE_F_ON_DONOR = 1 << 1,  /* the donor holds bytes of this page (perhaps old ones) */
    PAGE_F_FORGOTTEN = 1 << 2, /* --contents keep: what the export held at start no longer counts */
    PAGE_F_WANTED = 1 << 3,    /* a fault waits for the end of the current state */
    PAGE_F_READAHEAD = 1 << 4, /* fetched unasked, not used so far */
    PAGE_F_IO = 1 << 5,        /* a write or trim is under way: no other may start, no discard may finish */
    PAGE_F_HELD = 1 << 6,      /* DISCARDING: it was in the memfd and counts as present */
    PAGE_F_SUM = 1 << 7,       /* checksum is that of what the donor holds, unless the page is here and dirty */
};

struct page {
    uint32_t prev, next; /* list links, PAGE_NONE at the ends */
    uint8_t state;       /* enum page_state */
    uint8_t flags;       /* enum page_flags */
    /* What heat.c knows of it. */
    uint16_t left_at : 8; /* epoch in which it left the cache, 0: never */
    uint16_t history : 2; /* how often in a row it came back not long after */
    uint16_t rounds : 3;  /* on the inactive list before it has to go */
    uint16_t is_protected : 1;
    uint16_t is_stream : 1;  /* a stream brought it in: most likely it is used once */
    uint16_t is_delayed : 1; /* had its extra round for being dirty */
    uint32_t checksum;       /* of what was last sent to the donor; PAGE_F_SUM says whether there is one */
};
static_assert(sizeof(struct page) == 16, "memory per page is a promise (README)");

/* Mapped pages are on one list each of these. */
enum heat_class { HEAT_STREAM, HEAT_PROBATION, HEAT_PROTECTED, HEAT_CLASSES };

struct page_list {
    uint32_t head, tail;
    uint32_t count;
};

struct page_counts {
    int64_t present;  /* pages in the memfds, or on the way there: never above the cache size */
    int64_t dirty;    /* PAGE_F_DIRTY */
    int64_t on_donor; /* PAGE_F_ON_DONOR (or kept contents) */
    int64_t fetching;
    int64_t writeback;
    int64_t poisoned;
};

/* All fields are guarded by the pager's lock. */
struct page_table {
    struct page *pages;
    uint32_t n_pages;
    bool keep;   /* --contents keep */
    bool shared; /* pages lie in the state file */
    bool fifo;   /* --fifo: pages leave in the order in which they came */
    struct page_list mapped[HEAT_CLASSES];
    struct page_list inactive, spent; /* spent: used by a stream and inactive again, the first to go */
    struct page_list waiting;
    uint64_t review_ns;   /* heat.c: when the next protected page is zapped whatever there is else */
    uint32_t epoch_pages; /* heat.c: the length of an epoch; those of stream pages and of all others */
    struct page_epoch {
        uint32_t now, left;
    } epochs[2];
    struct page_counts counts;
};

/* In the memory given (of a state file, perhaps with another pager's pages in it), or in memory of its own with NULL.
 * Returns 0 or -errno. */
int page_table_create(struct page_table *table, uint32_t n_pages, bool keep, struct page *pages);
void page_table_destroy(struct page_table *table);
/* Back to untouched, for a run of pages that are on no list and in state ABSENT or POISONED. */
void page_table_forget(struct page_table *table, uint32_t first, uint32_t n_pages);

void page_list_push(struct page_table *table, struct page_list *list, uint32_t page);
void page_list_remove(struct page_table *table, struct page_list *list, uint32_t page);

bool page_on_donor(const struct page_table *table, uint32_t page);
void page_set_on_donor(struct page_table *table, uint32_t page, bool on_donor);
void page_set_dirty(struct page_table *table, uint32_t page, bool dirty);
/* Changes the state, keeping the counts; lists are the caller's business. */
void page_set_state(struct page_table *table, uint32_t page, enum page_state state);
/*
 * Takes a page that is at rest off the list it is on; its state stays, for the caller to look at and change. False,
 * and nothing is done, while the page is in motion.
 */
bool page_unlist(struct page_table *table, uint32_t page);
/* Of a page at rest: whether it is in the memfd, and so counts as present. */
bool page_is_here(const struct page_table *table, uint32_t page);

#endif
