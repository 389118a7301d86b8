/* SPDX-License-Identifier: MIT */
#include "heat.h"

#include <stddef.h>

#define STAMPS      511u /* left_at is from 1 on; 0: never left */
#define SOON        (HEAT_EPOCHS / 20u)
#define LATELY      (HEAT_EPOCHS / 2u)
#define HISTORY_MAX 3u
#define ROUNDS_MAX  7u
#define ROUNDS_USE  2u
/* While there is eviction, each protected page is looked at in this time at the latest. */
#define REVIEW_ALL_NS 300000000000ull

struct page_list *heat_list(struct page_table *table, uint32_t page)
{
    return table->fifo || table->pages[page].is_protected ? &table->resident : &table->probation;
}

/* Whether a protected page is due to show that it is still used. */
static bool review_is_due(struct page_table *table, uint64_t now_ns)
{
    if (now_ns == 0 || table->resident.count == 0 || now_ns < table->review_ns)
        return false;
    table->review_ns = now_ns + REVIEW_ALL_NS / table->resident.count;
    return true;
}

struct page_list *heat_zap_list(struct page_table *table, int64_t probation_pages, uint64_t now_ns)
{
    if (review_is_due(table, now_ns))
        return &table->resident;
    if (table->probation.count > 0 && (table->probation.count > probation_pages || table->resident.count == 0))
        return &table->probation;
    return table->resident.count > 0 ? &table->resident : NULL;
}

/* How many epochs ago it left; STAMPS if never (or so long ago that the count came round). */
static uint32_t epochs_away(const struct page_table *table, const struct page *p)
{
    if (p->left_at == 0)
        return STAMPS;
    return (table->epoch + STAMPS - p->left_at) % STAMPS;
}

void heat_came_in(struct page_table *table, uint32_t page)
{
    struct page *p = &table->pages[page];
    uint32_t away = epochs_away(table, p);

    if (away > LATELY)
        p->history = 0;
    else if (p->history < HISTORY_MAX)
        p->history++;
    p->is_protected = away <= SOON || p->history == HISTORY_MAX;
    p->rounds = 0;
}

void heat_used(struct page_table *table, uint32_t page)
{
    struct page *p = &table->pages[page];

    p->is_protected = 1;
    p->is_delayed = 0;
    p->rounds = (p->rounds + ROUNDS_USE < ROUNDS_MAX ? p->rounds + ROUNDS_USE : ROUNDS_MAX) & ROUNDS_MAX;
}

bool heat_spares(struct page_table *table, uint32_t page)
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

void heat_left(struct page_table *table, uint32_t page)
{
    struct page *p = &table->pages[page];

    if (++table->left >= table->epoch_pages) {
        table->left = 0;
        table->epoch = table->epoch % STAMPS + 1;
    }
    p->left_at = table->epoch & STAMPS;
    p->is_protected = 0;
    p->is_delayed = 0;
}
