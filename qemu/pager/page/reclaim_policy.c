/* SPDX-License-Identifier: MIT */
#include "page/reclaim_policy.h"

#include <stddef.h>

#define STAMPS      255u /* values of left_at, from 1 on; 0: the page never left */
#define SOON        2u   /* epochs */
#define LATELY      (RECLAIM_EPOCHS / 2u)
#define HISTORY_MAX 3u
#define ROUNDS_MAX  7u
#define ROUNDS_USE  2u
/* While pages are evicted, each protected page is zapped once within this time. */
#define REVIEW_ALL_NS 300000000000ull

struct page_list *reclaim_mapped(struct page_table *table, uint32_t page)
{
    const struct page *p = &table->pages[page];

    if (table->fifo || p->is_protected)
        return &table->mapped[RECLAIM_PROTECTED];
    return &table->mapped[p->is_stream ? RECLAIM_STREAM : RECLAIM_PROBATION];
}

uint32_t reclaim_mapped_count(const struct page_table *table)
{
    uint32_t n = 0;

    for (int class = 0; class < RECLAIM_CLASSES; class ++)
        n += table->mapped[class].count;
    return n;
}

struct page_list *reclaim_inactive(struct page_table *table, uint32_t page)
{
    const struct page *p = &table->pages[page];

    return p->is_stream && !table->fifo && !(p->flags & PAGE_F_READAHEAD) ? &table->spent : &table->inactive;
}

/* Whether the next protected page is due to be zapped: if it is still used, a fault shows it. */
static bool review_is_due(struct page_table *table, uint64_t now_ns)
{
    if (now_ns == 0 || table->mapped[RECLAIM_PROTECTED].count == 0 || now_ns < table->review_ns)
        return false;
    table->review_ns = now_ns + REVIEW_ALL_NS / table->mapped[RECLAIM_PROTECTED].count;
    return true;
}

int64_t reclaim_stream_excess(const struct page_table *table, int64_t allowed)
{
    int64_t excess = (int64_t)table->mapped[RECLAIM_STREAM].count - allowed;

    return excess > 0 ? excess : 0;
}

struct page_list *reclaim_zap_list(struct page_table *table, int64_t allowed, uint64_t now_ns)
{
    if (review_is_due(table, now_ns))
        return &table->mapped[RECLAIM_PROTECTED];
    for (int class = 0; class < RECLAIM_PROTECTED; class ++)
        if (table->mapped[class].count > allowed)
            return &table->mapped[class];
    for (int class = RECLAIM_CLASSES; class -- > 0;)
        if (table->mapped[class].count > 0)
            return &table->mapped[class];
    return NULL;
}

/* Returns how many epochs ago the page left; STAMPS if it never did. (After STAMPS epochs the count begins anew.) */
static uint32_t epochs_away(const struct page_table *table, const struct page *p)
{
    if (p->left_at == 0)
        return STAMPS;
    return (table->epochs[p->is_stream].now + STAMPS - p->left_at) % STAMPS;
}

void reclaim_came_in(struct page_table *table, uint32_t page, bool of_stream)
{
    struct page *p = &table->pages[page];
    uint32_t away = epochs_away(table, p);

    if (away > LATELY)
        p->history = 0;
    else if (p->history < HISTORY_MAX)
        p->history++;
    p->is_protected = (away <= SOON && !p->is_stream && !of_stream) || p->history == HISTORY_MAX;
    p->is_stream = of_stream && !p->is_protected;
    p->rounds = 0;
}

void reclaim_used(struct page_table *table, uint32_t page)
{
    struct page *p = &table->pages[page];

    p->is_protected = 1;
    p->is_stream = 0;
    p->is_delayed = 0;
    p->rounds = (p->rounds + ROUNDS_USE < ROUNDS_MAX ? p->rounds + ROUNDS_USE : ROUNDS_MAX) & ROUNDS_MAX;
}

bool reclaim_spares(struct page_table *table, uint32_t page)
{
    struct page *p = &table->pages[page];

    if (table->fifo)
        return false;
    if (p->rounds > 0) {
        p->rounds--;
        return true;
    }
    if (!(p->flags & PAGE_F_DIRTY) || p->is_delayed)
        return false;
    p->is_delayed = 1;
    return true;
}

void reclaim_left(struct page_table *table, uint32_t page)
{
    struct page *p = &table->pages[page];

    /* The epochs of stream pages count all evictions, those of other pages only evictions of other pages. */
    for (int of_stream = p->is_stream ? 1 : 0; of_stream < 2; of_stream++) {
        struct page_epoch *epoch = &table->epochs[of_stream];

        if (++epoch->left >= table->epoch_pages) {
            epoch->left = 0;
            epoch->now = epoch->now % STAMPS + 1;
        }
    }
    p->left_at = table->epochs[p->is_stream].now & STAMPS;
    p->is_protected = 0;
    p->is_delayed = 0;
}

bool page_unlist(struct page_table *table, uint32_t page)
{
    const struct page *p = &table->pages[page];

    if (p->flags & PAGE_F_IO)
        return false;
    switch ((enum page_state)p->state) {
    case PAGE_RESIDENT:
        page_list_remove(table, reclaim_mapped(table, page), page);
        return true;
    case PAGE_INACTIVE:
        page_list_remove(table, reclaim_inactive(table, page), page);
        return true;
    case PAGE_WAITING:
        page_list_remove(table, &table->waiting, page);
        return true;
    case PAGE_ABSENT:
    case PAGE_POISONED:
        return true;
    default:
        return false;
    }
}
