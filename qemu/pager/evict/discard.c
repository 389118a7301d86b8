/* SPDX-License-Identifier: MIT */
/*
 * Discards: memory that the guest gives back (balloon, free page reporting). QEMU punches a hole into the memfd, for
 * which userfaultfd has no event; so the shim announces the hole and waits.
 *
 * After BEGIN each page of the range becomes DISCARDING as soon as it is not in motion (no fetch, write or zap of it
 * is under way); then READY is sent. Faults on the pages are held until the end. After END the pages are absent and
 * zero, and the donors are told to forget them; then DONE is sent, because from now on a pager that takes over knows
 * of it, too.
 */
#include "evict/discard.h"

#include "base/fault_points.h"
#include "evict/writeback.h"
#include "log.h"
#include "page/reclaim_policy.h"

#include <errno.h>

/* Makes a page DISCARDING. Returns false if it is in motion or in another discard. With the lock. */
static bool take(struct pager *pager, uint32_t page)
{
    struct page_table *table = &pager->table;
    struct page *p = &table->pages[page];

    pager_assert_locked(pager);
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

/* Takes further pages of a discard; sends READY once all are taken. */
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

/* Tells the donors to forget the pages after END, as far as requests can be sent. */
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

    for (uint32_t l = 0; l < LINKS_MAX; l++) {
        struct link *link = &loop->links.list[l];

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

/* Makes a punched page ABSENT, clean and on no donor. Returns whether it was on a donor. With the lock. */
static bool forget(struct pager *pager, uint32_t page)
{
    struct page_table *table = &pager->table;
    bool on_donor = page_on_donor(table, page);

    pager_assert_locked(pager);
    if (table->pages[page].flags & PAGE_F_HELD)
        table->counts.present--;
    page_set_dirty(table, page, false);
    page_set_on_donor(table, page, false);
    page_set_state(table, page, PAGE_ABSENT);
    return on_donor;
}

/*
 * Settles a page of a discard whose hole was not punched, or may not have been. A page that is in the memfd stays, as
 * a dirty page; a page that was there and no longer is has been punched. With the lock.
 */
static void restore(struct pager *pager, const struct region *region, uint32_t page)
{
    struct page_table *table = &pager->table;

    pager_assert_locked(pager);
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
    page_list_push(table, reclaim_mapped(table, page), page);
}

/* Clears the flags of a discard. Returns whether a fault waits for the page. With the lock. */
static bool settle(struct pager *pager, uint32_t page)
{
    struct page *p = &pager->table.pages[page];
    bool wanted = p->flags & PAGE_F_WANTED;

    pager_assert_locked(pager);
    p->flags &= (uint8_t) ~(PAGE_F_WANTED | PAGE_F_HELD | PAGE_F_READAHEAD);
    return wanted;
}

/* Takes all pages up to the cursor out of DISCARDING. Takes the lock for each page. */
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
        /* Until the donors are told, no write of the page may start, because the trim would remove its bytes. */
        if (punched)
            pager->table.pages[page].flags |= PAGE_F_IO;
        pager_unlock(pager);
        FAULT_POINT(discard_settling);
    }
}

/* Ends a discard, whose pages up to the cursor are DISCARDING. */
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
        pager_mark_io(pager, discard->first, discard->n_pages, false);
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
        pager_mark_io(loop->pager, discard->cursor, discard->first + discard->n_pages - discard->cursor, false);
        discard->in_use = false;
        link->n_discards--;
    }
}
