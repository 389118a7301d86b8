/* SPDX-License-Identifier: MIT */
/* The state of the fault thread: its reads from donors, and what it remembers. Only this thread uses it. */
#ifndef GHOSTBOX_FAULT_H
#define GHOSTBOX_FAULT_H

#include "fault/stream.h"
#include "loop.h"
#include "pager.h"

/* The most fetches at a time. There are more slots than that, for reads from a second copy (hedge.c). */
#define DEMAND_MAX      128u
#define READAHEAD_MAX   16u
#define DEMAND_SLOTS    (DEMAND_MAX + 64u)
#define READAHEAD_SLOTS (READAHEAD_MAX + 4u)
#define FETCH_ATTEMPTS  5u /* reads of a page that a donor answers with an error before the page counts as lost */
/* How long until a read that could not be sent, or a fault on its page, is tried again. */
#define FETCH_RETRY_NS 10000000ull

/*
 * A fetch: a read from a donor, of one page for a fault, or of a run for readahead. A fetch asks one copy of its
 * pages at a time. If that takes too long, a twin asks another copy, and the first good answer counts. The other
 * fetch is then "overtaken": it only keeps its slot until its own answer has come.
 */
struct fetch {
    struct request request; /* first */
    struct fetch *next;     /* in the free list or the retry list */
    uint8_t *buf;
    uint32_t page, n_pages;
    struct place place;                /* the copy that was asked */
    uint32_t tried;                    /* copies that failed in this round: a bit for each index */
    uint32_t denied;                   /* those whose donor has answered, by an error or with wrong bytes */
    uint64_t denied_words[COPIES_MAX]; /* the words of these copies when they were asked */
    uint32_t older;                    /* FILLING and STALE copies that were asked in vain: a bit for each index */
    struct fetch *twin;                /* the fetch that asks another copy for the same pages, or NULL */
    uint64_t hedge_ns;                 /* when to ask another copy as well; 0: never */
    bool is_hedge;                     /* it was begun as the twin of another fetch */
    bool late;                         /* its donor's n_late counts it */
    bool overtaken;
    uint32_t attempts; /* rounds in which all copies denied the page */
    uint64_t retry_ns;
    uint64_t fault_ns; /* when the pager read the fault's event */
    bool demand;       /* a fault waits for the page */
    bool of_stream;    /* the page belongs to a stream whose reader is ahead of its readahead */
};

struct fault_loop {
    struct pager *pager;
    struct loop loop; /* the epoll, and the connections */
    struct fetch demand[DEMAND_SLOTS], readahead[READAHEAD_SLOTS];
    struct fetch *free_demand, *free_readahead;
    uint32_t n_demand, n_readahead; /* fetches under way, without the overtaken ones */
    uint64_t hedge_ns;              /* not later than the first fetch's hedge_ns; 0: no fetch has one */
    struct fetch *retry;            /* fetches that wait for retry_ns or for their donor */
    uint8_t *buffers;
    uint32_t readahead_pages;            /* largest window; 0: no readahead */
    struct region *watched[REGIONS_MAX]; /* the regions whose userfaultfd is in the epoll */
    uint32_t n_watched;
    struct streams streams;
    uint64_t retry_waiting_ns; /* when to look at the waiting list again; 0: when the thread is woken */
    uint64_t now_ns;
    uint64_t spun_ns;            /* when the loop last read the clock */
    uint32_t patience;           /* how long readahead waits beside faults at random: choose_patience() */
    uint64_t readahead_after_ns; /* until this time answers to readahead wait on the done list */
};

/* Returns the page that lies n pages up or down from this one. */
static inline uint32_t step_from(uint32_t page, uint32_t n, bool backwards)
{
    return backwards ? page - n : page + n;
}

/* Returns the lowest page of a run of n pages, up or down from this one. */
static inline uint32_t run_first(uint32_t page, uint32_t n, bool backwards)
{
    return backwards ? page - (n - 1) : page;
}

#endif
