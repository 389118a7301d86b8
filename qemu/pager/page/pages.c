/* SPDX-License-Identifier: MIT */
#include "page/pages.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

static const struct page_list no_pages = {PAGE_NONE, PAGE_NONE, 0};

/* Keeps the compiler from moving stores across this point: pages.h, rules 1 and 2. */
static inline void keep_order(void)
{
    atomic_signal_fence(memory_order_seq_cst);
}

static struct page *map_pages(uint32_t n_pages)
{
    size_t bytes = (size_t)n_pages * sizeof(struct page);
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (pages == MAP_FAILED)
        return NULL;
    /* A huge page would take memory for the entries of pages that were never touched. */
    madvise(pages, bytes, MADV_NOHUGEPAGE);
    return pages;
}

int page_table_create(struct page_table *table, uint32_t n_pages, bool keep, struct page *pages)
{
    bool shared = pages != NULL;

    if (!shared)
        pages = map_pages(n_pages);
    if (!pages)
        return -errno;
    *table = (struct page_table){
        .pages = pages,
        .n_pages = n_pages,
        .keep = keep,
        .shared = shared,
        .epoch_pages = 1,
        .epochs = {{1, 0}, {1, 0}},
        .mapped = {no_pages, no_pages, no_pages},
        .inactive = no_pages,
        .spent = no_pages,
        .waiting = no_pages,
    };
    table->counts.on_donor = keep ? n_pages : 0;
    return 0;
}

void page_table_destroy(struct page_table *table)
{
    if (table->pages && !table->shared)
        munmap(table->pages, (size_t)table->n_pages * sizeof(struct page));
    table->pages = NULL;
}

void page_table_forget(struct page_table *table, uint32_t first, uint32_t n_pages)
{
    for (uint32_t page = first; page < first + n_pages; page++) {
        struct page *p = &table->pages[page];

        if (p->state == PAGE_ABSENT && p->flags == 0)
            continue;
        assert(p->state == PAGE_ABSENT || p->state == PAGE_POISONED);
        page_set_dirty(table, page, false);
        page_set_state(table, page, PAGE_ABSENT);
        if (table->keep)
            page_set_on_donor(table, page, true);
        else
            page_set_on_donor(table, page, false);
        memset(p, 0, sizeof(*p));
    }
}

void page_list_push(struct page_table *table, struct page_list *list, uint32_t page)
{
    struct page *p = &table->pages[page];

    p->next = PAGE_NONE;
    p->prev = list->tail;
    if (list->tail == PAGE_NONE)
        list->head = page;
    else
        table->pages[list->tail].next = page;
    list->tail = page;
    list->count++;
}

void page_list_remove(struct page_table *table, struct page_list *list, uint32_t page)
{
    struct page *p = &table->pages[page];

    if (p->prev == PAGE_NONE)
        list->head = p->next;
    else
        table->pages[p->prev].next = p->next;
    if (p->next == PAGE_NONE)
        list->tail = p->prev;
    else
        table->pages[p->next].prev = p->prev;
    assert(list->count > 0);
    list->count--;
}

bool page_on_donor(const struct page_table *table, uint32_t page)
{
    uint8_t flags = table->pages[page].flags;

    return (flags & PAGE_F_ON_DONOR) || (table->keep && !(flags & PAGE_F_FORGOTTEN));
}

void page_set_on_donor(struct page_table *table, uint32_t page, bool on_donor)
{
    uint8_t *flags = &table->pages[page].flags;

    if (page_on_donor(table, page) != on_donor)
        table->counts.on_donor += on_donor ? 1 : -1;
    keep_order();
    if (on_donor)
        *flags = (uint8_t)(*flags | PAGE_F_ON_DONOR);
    else
        *flags = (uint8_t)((*flags & ~PAGE_F_ON_DONOR) | (table->keep ? PAGE_F_FORGOTTEN : 0));
    keep_order();
}

void page_set_dirty(struct page_table *table, uint32_t page, bool dirty)
{
    uint8_t *flags = &table->pages[page].flags;

    if (((*flags & PAGE_F_DIRTY) != 0) != dirty)
        table->counts.dirty += dirty ? 1 : -1;
    keep_order();
    *flags = (uint8_t)(dirty ? *flags | PAGE_F_DIRTY : *flags & ~PAGE_F_DIRTY);
    keep_order();
}

static void count_state(struct page_counts *counts, enum page_state state, int by)
{
    if (state == PAGE_FETCHING)
        counts->fetching += by;
    else if (state == PAGE_WRITEBACK)
        counts->writeback += by;
    else if (state == PAGE_POISONED)
        counts->poisoned += by;
}

void page_set_state(struct page_table *table, uint32_t page, enum page_state state)
{
    struct page *p = &table->pages[page];

    count_state(&table->counts, (enum page_state)p->state, -1);
    count_state(&table->counts, state, 1);
    keep_order();
    p->state = (uint8_t)state;
    keep_order();
}

bool page_is_here(const struct page_table *table, uint32_t page)
{
    uint8_t state = table->pages[page].state;

    return state == PAGE_RESIDENT || state == PAGE_INACTIVE;
}
