/* SPDX-License-Identifier: MIT */
/*
 * Memory that the guest gives back (balloon, free page reporting). QEMU punches a hole into the memfd, for which
 * userfaultfd has no event; the shim announces it and waits.
 *
 * BEGIN: each page of the range becomes DISCARDING as soon as it is not in motion (no fetch, no write, no zap of it
 * under way); then READY. Faults on them are held. END: they are absent and zero, and the donor may forget them;
 * DONE, now that another pager would know it too.
 */
#include "evict.h"
#include "fault_points.h"
#include "heat.h"
#include "log.h"

#include <errno.h>

/* With the lock. Whether the page could be taken: not while it is in motion, or in another discard. */
static bool take(struct pager *pager, uint32_t page)
{
    struct page_table *table = &pager->table;
    struct page *p = &table->pages[page];

    if (!page_unlist(table, page))
        return false;
    if (page_is_here(table, page))
        p->flags |= PAGE_F_HELD;
    else if (p->state == PAGE_WAITING)
        p->flags |= PAGE_F_WANTED;
    page_set_state(table, page, PAGE_DISCARDING);
    return true;
}

static void answer(struct link *link, enum gb_msg_type type, uint32_t seq, int error)
{
    struct gb_done done = {.h = link_header(type, seq, sizeof(done)), .error = error};

    link_send(link, &done, sizeof(done));
}

static void progress(struct evict_loop *loop, struct link *link, struct discard *discard)
{
    struct pager *pager = loop->pager;
    uint32_t end = discard->first + discard->n_pages;

    pager_lock(pager);
    while (discard->cursor < end && take(pager, discard->cursor))
        discard->cursor++;
    pager_unlock(pager);
    if (discard->cursor < end)
        return;
    discard->ready = true;
    FAULT_POINT(discard_taken);
    answer(link, GB_MSG_DISCARD_READY, discard->seq, 0);
    FAULT_POINT(discard_ready);
}

/* END has come: tells the donors, as far as requests can be sent. */
static void tell_donors(struct evict_loop *loop, struct link *link, struct discard *discard)
{
    uint32_t end = discard->first + discard->n_pages;

    discard->cursor += writeback_forget(loop, discard->cursor, end - discard->cursor);
    if (discard->cursor < end)
        return;
    discard->in_use = false;
    link->n_discards--;
}

bool discard_progress(struct evict_loop *loop)
{
    bool waiting = false;

    for (uint32_t l = 0; l < sizeof(loop->links) / sizeof(*loop->links); l++) {
        struct link *link = &loop->links[l];

        for (uint32_t i = 0; link->n_discards && i < DISCARDS_MAX; i++) {
            struct discard *discard = &link->discards[i];

            if (!discard->in_use)
                continue;
            if (discard->forgetting)
                tell_donors(loop, link, discard);
            else if (!discard->ready)
                progress(loop, link, discard);
            waiting = waiting || (discard->in_use && (discard->forgetting || !discard->ready));
        }
    }
    return waiting;
}

static bool range_valid(const struct region *region, const struct gb_range *range)
{
    return range->length > 0 && range->offset % PAGE_BYTES == 0 && range->length % PAGE_BYTES == 0 &&
           range->offset < region->length && range->length <= region->length - range->offset;
}

void discard_begin(struct evict_loop *loop, struct link *link, const struct gb_range_msg *message)
{
    struct discard *discard = NULL;

    for (uint32_t i = 0; i < DISCARDS_MAX && !discard; i++)
        if (!link->discards[i].in_use)
            discard = &link->discards[i];
    if (!range_valid(link->region, &message->range) || !discard) {
        answer(link, GB_MSG_DISCARD_READY, message->h.seq, discard ? EINVAL : EBUSY);
        return;
    }
    *discard = (struct discard){
        .in_use = true,
        .seq = message->h.seq,
        .first = link->region->first_page + (uint32_t)(message->range.offset / PAGE_BYTES),
        .n_pages = (uint32_t)(message->range.length / PAGE_BYTES),
    };
    discard->cursor = discard->first;
    link->n_discards++;
    COUNT(loop->pager->counters.discard_requests, 1);
    progress(loop, link, discard);
}

/* With the lock. The hole is punched: nothing is left of the page, here or on the donor. */
static bool forget(struct pager *pager, uint32_t page)
{
    struct page_table *table = &pager->table;
    bool on_donor = page_on_donor(table, page);

    if (table->pages[page].flags & PAGE_F_HELD)
        table->counts.present--;
    page_set_dirty(table, page, false);
    page_set_on_donor(table, page, false);
    page_set_state(table, page, PAGE_ABSENT);
    return on_donor;
}

/*
 * With the lock. The hole was not punched, or who knows: what is here stays, as written. What was here and no longer
 * is was punched.
 */
static void restore(struct pager *pager, const struct region *region, uint32_t page)
{
    struct page_table *table = &pager->table;

    if (!(table->pages[page].flags & PAGE_F_HELD)) {
        page_set_state(table, page, PAGE_ABSENT);
        return;
    }
    if (!region_has_page(region, page)) {
        forget(pager, page);
        return;
    }
    page_set_dirty(table, page, true);
    page_set_state(table, page, PAGE_RESIDENT);
    page_list_push(table, heat_mapped(table, page), page);
}

/* With the lock. Returns whether a fault waited for the page. */
static bool settle(struct pager *pager, uint32_t page)
{
    struct page *p = &pager->table.pages[page];
    bool wanted = p->flags & PAGE_F_WANTED;

    p->flags &= (uint8_t) ~(PAGE_F_WANTED | PAGE_F_HELD | PAGE_F_READAHEAD);
    return wanted;
}

/* With the lock held in slices: every page up to the cursor leaves DISCARDING. */
static void settle_all(struct pager *pager, const struct region *region, const struct discard *discard, bool punched,
                       bool *wanted, bool *on_donor)
{
    for (uint32_t page = discard->first; page < discard->cursor; page++) {
        pager_lock(pager);
        if (!punched)
            restore(pager, region, page);
        else if (forget(pager, page))
            *on_donor = true;
        *wanted = settle(pager, page) || *wanted;
        /* Until the donor has been told, no new write to it may start: the trim would remove it. */
        if (punched)
            pager->table.pages[page].flags |= PAGE_F_IO;
        pager_unlock(pager);
        FAULT_POINT(discard_settling);
    }
}

/* Ends a discard; the pages up to its cursor are DISCARDING. */
static void finish(struct evict_loop *loop, struct link *link, struct discard *discard, bool punched)
{
    struct pager *pager = loop->pager;
    bool wanted = false, on_donor = false;

    settle_all(pager, link->region, discard, punched, &wanted, &on_donor);
    if (wanted)
        region_wake(link->region, discard->first, discard->cursor - discard->first);
    pager_wake_fault(pager);
    if (punched) {
        COUNT(pager->counters.discard_pages, discard->n_pages);
        if (on_donor) {
            discard->forgetting = true;
            discard->ready = false;
            discard->cursor = discard->first;
            tell_donors(loop, link, discard);
            return;
        }
        writeback_mark_io(pager, discard->first, discard->n_pages, false);
    }
    discard->in_use = false;
    link->n_discards--;
}

void discard_end(struct evict_loop *loop, struct link *link, const struct gb_range_msg *message)
{
    for (uint32_t i = 0; i < DISCARDS_MAX; i++) {
        struct discard *discard = &link->discards[i];

        if (discard->in_use && discard->ready && discard->seq == message->h.seq) {
            uint32_t seq = discard->seq;

            FAULT_POINT(discard_ended);
            finish(loop, link, discard, message->error == 0);
            FAULT_POINT(discard_settled);
            answer(link, GB_MSG_DISCARD_DONE, seq, 0);
            FAULT_POINT(discard_forgotten);
            return;
        }
    }
    log_warning("process %d ended a discard that it had not begun", link->pid);
}

void discard_abandon(struct evict_loop *loop, struct link *link)
{
    for (uint32_t i = 0; i < DISCARDS_MAX; i++) {
        struct discard *discard = &link->discards[i];

        if (!discard->in_use)
            continue;
        if (!discard->forgetting) {
            finish(loop, link, discard, false);
            continue;
        }
        writeback_mark_io(loop->pager, discard->cursor, discard->first + discard->n_pages - discard->cursor, false);
        discard->in_use = false;
        link->n_discards--;
    }
}
