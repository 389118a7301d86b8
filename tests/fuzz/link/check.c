/* SPDX-License-Identifier: MIT */
#include "check.h"

#include <assert.h>

static uint32_t list_count(const struct page_table *table, const struct page_list *list)
{
    uint32_t n = 0, before = PAGE_NONE;

    for (uint32_t page = list->head; page != PAGE_NONE; page = table->pages[page].next, n++) {
        assert(page < table->n_pages && table->pages[page].prev == before && n < table->n_pages);
        before = page;
    }
    assert(list->tail == before && list->count == n);
    return n;
}

/* Whether a page in this state has a frame of the cache. */
static bool counts_as_present(const struct page *p)
{
    switch ((enum page_state)p->state) {
    case PAGE_ABSENT:
    case PAGE_WAITING:
    case PAGE_POISONED:
        return false;
    case PAGE_DISCARDING:
        return p->flags & PAGE_F_HELD;
    default:
        return true;
    }
}

void check_pages(struct pager *pager)
{
    struct page_table *table = &pager->table;
    uint32_t n_present = 0, n_resident = 0, n_inactive = 0, n_dirty = 0, n_listed = 0;

    pager_lock(pager);
    for (uint32_t page = 0; page < table->n_pages; page++) {
        const struct page *p = &table->pages[page];

        assert(p->state < PAGE_STATES);
        n_present += counts_as_present(p);
        n_resident += p->state == PAGE_RESIDENT;
        n_inactive += p->state == PAGE_INACTIVE;
        n_dirty += (p->flags & PAGE_F_DIRTY) != 0;
        assert(pager_region_of(pager, page) || p->state == PAGE_ABSENT);
    }
    for (int class = 0; class < RECLAIM_CLASSES; class ++)
        n_listed += list_count(table, &table->mapped[class]);
    assert(n_listed == n_resident);
    assert(list_count(table, &table->inactive) + list_count(table, &table->spent) == n_inactive);
    assert(list_count(table, &table->waiting) == 0);
    assert(table->counts.present == n_present && table->counts.dirty == n_dirty);
    pager_unlock(pager);
}
