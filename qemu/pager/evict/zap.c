/* SPDX-License-Identifier: MIT */
/*
 * Zapping: the shim's thread unmaps a batch of pages in QEMU (MADV_DONTNEED). The pages stay in the memfd; from then
 * on no thread can touch them without a MINOR fault, which the pager answers. The page tables keep a mark on each
 * page that was not written since it was mapped (pagemap bit 57), by which the pager tells clean pages from dirty
 * ones.
 */
#include "evict/zap.h"

#include "base/clock.h"
#include "base/fault_points.h"
#include "log.h"
#include "page/reclaim_policy.h"
#include "page/runs.h"

#include <errno.h>
#include <string.h>

/* Picks the next pages to zap, as long as they belong to the link's region. Returns how many. With the lock. */
static uint32_t pick(struct evict_loop *loop, struct link *link, uint32_t n)
{
    struct page_table *table = &loop->pager->table;

    pager_assert_locked(loop->pager);
    uint64_t now_ns = clock_ns();

    n = n < BATCH_PAGES ? n : BATCH_PAGES;
    while (link->n_zapping < n) {
        struct page_list *list = reclaim_zap_list(table, loop->pager->watermarks.probation, now_ns);

        if (!list || !region_holds(link->region, list->head))
            break;
        uint32_t page = list->head;

        page_list_remove(table, list, page);
        page_set_state(table, page, PAGE_ZAPPING);
        link->zapping[link->n_zapping++] = page;
    }
    return link->n_zapping;
}

/*
 * Returns the link of the next page to zap, or NULL. Pages of a region without a connection cannot be zapped; they
 * are moved to the end of their list, so that they do not hold up others.
 */
static struct link *link_at_head(struct evict_loop *loop)
{
    struct page_table *table = &loop->pager->table;

    pager_assert_locked(loop->pager);
    for (uint32_t tries = 0; tries < BATCH_PAGES; tries++) {
        struct page_list *list = reclaim_zap_list(table, loop->pager->watermarks.probation, 0);

        if (!list)
            break;
        uint32_t page = list->head;
        struct link *link = link_of(&loop->links, pager_region_of(loop->pager, page));

        if (link)
            return link;
        page_list_remove(table, list, page);
        page_list_push(table, list, page);
    }
    return NULL;
}

static void fill_ranges(struct gb_zap *zap, const struct link *link)
{
    const struct region *region = link->region;

    zap->n_ranges = 0;
    zap->reserved = 0;
    for (uint32_t i = 0; i < link->n_zapping;) {
        uint32_t run = run_length(link->zapping + i, link->n_zapping - i, BATCH_PAGES);

        zap->ranges[zap->n_ranges++] = (struct gb_range){
            .offset = (uint64_t)(link->zapping[i] - region->first_page) * PAGE_BYTES,
            .length = (uint64_t)run * PAGE_BYTES,
        };
        i += run;
    }
}

void zap_start(struct evict_loop *loop, uint32_t n)
{
    struct pager *pager = loop->pager;
    struct gb_zap zap;

    pager_lock(pager);
    struct link *link = link_at_head(loop);
    uint32_t picked = link && link->n_zapping == 0 ? pick(loop, link, n) : 0;

    pager_unlock(pager);
    if (picked == 0)
        return;
    sort_pages(link->zapping, picked);
    fill_ranges(&zap, link);
    zap.h = link_header(GB_MSG_ZAP, ++link->zap_seq, GB_ZAP_BYTES(zap.n_ranges));
    FAULT_POINT(zap_marked);
    if (link_send(link, &zap, zap.h.bytes) == 0) /* otherwise the batch is abandoned when the link is closed */
        COUNT(pager->counters.zapped, picked);
    FAULT_POINT(zap_sent);
}

static void make_inactive(struct pager *pager, uint32_t page, bool written)
{
    pager_assert_locked(pager);
    if (pager->table.pages[page].state != PAGE_ZAPPING)
        return; /* a fault took the page back */
    if (written)
        page_set_dirty(&pager->table, page, true);
    FAULT_POINT(zap_dirty);
    page_set_state(&pager->table, page, PAGE_INACTIVE);
    page_list_push(&pager->table, reclaim_inactive(&pager->table, page), page);
}

/* Makes a page resident again. It may be unmapped all the same; then the next fault maps it. With the lock. */
static void make_resident(struct pager *pager, uint32_t page)
{
    pager_assert_locked(pager);
    if (pager->table.pages[page].state != PAGE_ZAPPING)
        return;
    page_set_dirty(&pager->table, page, true);
    page_set_state(&pager->table, page, PAGE_RESIDENT);
    page_list_push(&pager->table, reclaim_mapped(&pager->table, page), page);
}

void zap_abandon(struct evict_loop *loop, struct link *link)
{
    pager_lock(loop->pager);
    for (uint32_t i = 0; i < link->n_zapping; i++)
        make_resident(loop->pager, link->zapping[i]);
    pager_unlock(loop->pager);
    link->n_zapping = 0;
}

bool zap_done(struct evict_loop *loop, struct link *link, const struct gb_done *message)
{
    struct pager *pager = loop->pager;
    bool written[BATCH_PAGES];

    if (link->n_zapping == 0 || message->h.seq != link->zap_seq)
        return false;
    if (message->error) {
        log_error("process %d cannot zap: %s", link->pid, strerror(message->error));
        zap_abandon(loop, link);
        return true;
    }
    FAULT_POINT(zap_answered);
    for (uint32_t i = 0; i < link->n_zapping;) {
        uint32_t run = run_length(link->zapping + i, link->n_zapping - i, BATCH_PAGES);

        if (region_written(link->region, link->zapping[i], run, written + i) < 0)
            memset(written + i, true, run);
        i += run;
    }
    FAULT_POINT(zap_read);
    pager_lock(pager);
    for (uint32_t i = 0; i < link->n_zapping; i++)
        make_inactive(pager, link->zapping[i], written[i]);
    pager_unlock(pager);
    link->n_zapping = 0;
    return true;
}
