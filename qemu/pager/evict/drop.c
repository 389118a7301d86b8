/* SPDX-License-Identifier: MIT */
#include "evict/drop.h"

#include "base/fault_points.h"
#include "log.h"
#include "page/reclaim_policy.h"
#include "page/runs.h"

#include <string.h>

void drop_add(struct evict_loop *loop, uint32_t page)
{
    struct page *p = &loop->pager->table.pages[page];

    pager_assert_locked(loop->pager);
    if (p->flags & PAGE_F_READAHEAD) {
        COUNT(loop->pager->counters.readahead_wasted, 1);
        loop->pager->n_wasted++;
        loop->pager->last_wasted = page;
        p->flags &= (uint8_t)~PAGE_F_READAHEAD;
    }
    page_set_state(&loop->pager->table, page, PAGE_DROPPING);
    loop->dropping[loop->n_dropping++] = page;
}

/*
 * Settles a run of pages of one region: ABSENT if they were punched, else INACTIVE again. Threads whose faults came
 * meanwhile are woken, so that the faults are raised again.
 */
static void dropped(struct pager *pager, uint32_t page, uint32_t n, bool punched)
{
    struct page_table *table = &pager->table;

    pager_lock(pager);
    const struct region *region = pager_region_of(pager, page);

    for (uint32_t i = page; i < page + n; i++) {
        bool wanted = table->pages[i].flags & PAGE_F_WANTED;

        table->pages[i].flags &= (uint8_t)~PAGE_F_WANTED;
        if (punched) {
            table->counts.present--;
            reclaim_left(table, i);
            page_set_state(table, i, PAGE_ABSENT);
        } else {
            page_set_state(table, i, PAGE_INACTIVE);
            page_list_push(table, reclaim_inactive(table, i), i);
        }
        FAULT_POINT(evict_absent);
        if (wanted && region)
            region_wake(region, i, 1);
    }
    pager_unlock(pager);
}

void drop_flush(struct evict_loop *loop)
{
    struct pager *pager = loop->pager;

    if (loop->n_dropping == 0)
        return;
    sort_pages(loop->dropping, loop->n_dropping);
    for (uint32_t i = 0; i < loop->n_dropping;) {
        uint32_t page = loop->dropping[i];

        pager_lock(pager);
        struct region *region = pager_region_of(pager, page);

        pager_unlock(pager);
        uint32_t left = region ? region->n_pages - (page - region->first_page) : 1;
        uint32_t run = run_length(loop->dropping + i, loop->n_dropping - i, left);
        int rc = region ? region_punch(region, page, run) : 0;

        FAULT_POINT(evict_punched);
        if (rc < 0)
            log_error("cannot punch %u pages out of the memory of process %d: %s", run, region->pid, strerror(-rc));
        dropped(pager, page, run, rc == 0);
        i += run;
    }
    loop->n_dropping = 0;
    pager_wake_fault(pager);
}
