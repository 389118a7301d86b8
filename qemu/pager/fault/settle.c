/* SPDX-License-Identifier: MIT */
#include "fault/settle.h"

#include "base/clock.h"
#include "page/reclaim_policy.h"

void fault_make_wait(struct fault_loop *loop, uint32_t page, uint64_t retry_after_ns)
{
    struct page_table *table = &loop->pager->table;

    pager_assert_locked(loop->pager);
    page_set_state(table, page, PAGE_WAITING);
    page_list_push(table, &table->waiting, page);
    COUNT(loop->pager->counters.deferred, 1);
    if (retry_after_ns)
        loop->retry_waiting_ns = clock_ns() + retry_after_ns;
}

void fault_installed(struct fault_loop *loop, uint32_t page)
{
    struct page_table *table = &loop->pager->table;

    pager_assert_locked(loop->pager);
    table->pages[page].flags &= (uint8_t) ~(PAGE_F_WANTED | PAGE_F_READAHEAD);
    page_set_state(table, page, PAGE_RESIDENT);
    page_list_push(table, reclaim_mapped(table, page), page);
}

void fetch_give_up_page(struct fault_loop *loop, uint32_t page)
{
    struct page_table *table = &loop->pager->table;
    bool wanted = table->pages[page].flags & PAGE_F_WANTED;

    pager_assert_locked(loop->pager);
    table->counts.present--;
    table->pages[page].flags &= (uint8_t) ~(PAGE_F_WANTED | PAGE_F_READAHEAD);
    page_set_state(table, page, PAGE_ABSENT);
    if (wanted)
        fault_make_wait(loop, page, FETCH_RETRY_NS);
}
