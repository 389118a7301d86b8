/* SPDX-License-Identifier: MIT */
/*
 * Recovery: going on with the page table of a pager that died at any instruction, or handed over.
 *
 * The regions are known from the state file, but are not served until their processes connect again and hand over
 * their descriptors. Then each page's entry is read together with what the kernel knows: whether the page is in the
 * memfd.
 *
 *   it was        in the memfd                         not in the memfd
 *   ABSENT        made by another mapping: punched if  absent
 *   WAITING         a donor has the page               absent
 *   FETCHING        (all three are treated alike)      absent: none of its bytes had arrived
 *   MAPPING       resident, dirty: it may be mapped    absent; if dirty it vanished, and no donor's copy counts
 *   RESIDENT      resident, as it is                   vanished
 *   ZAPPING       resident, as it is: the next zap     vanished
 *                   reads the mark of a write anew
 *   INACTIVE      inactive, as it is                   vanished
 *   WRITEBACK     inactive, dirty: written once more   vanished
 *   DROPPING      inactive, clean: not punched yet     absent: punched, the donor has it
 *   DISCARDING    resident, dirty (HELD), or as        absent and zero (HELD), or as ABSENT; the shim asks again,
 *                   ABSENT                               because it has had no DISCARD_DONE
 *   POISONED      poisoned                             poisoned
 *
 * A page has "vanished" if it was punched and the pager was not told: it reads as zeroes. Each entry is replaced by
 * one store, so if this pager dies meanwhile, the next one comes to the same result.
 */
#include "regions/recover.h"

#include "base/fault_points.h"
#include "log.h"
#include "page/reclaim_policy.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* After so many pages the lock is released, for the faults of other regions. */
#define SLICE_PAGES 1024u

struct verdict {
    enum page_state state;
    bool dirty;
    bool forget; /* the bytes that donors hold do not count */
    bool punch;  /* the bytes in the memfd do not count */
    bool vanished;
};

static struct verdict judge_here(enum page_state state, bool dirty, bool held, bool on_donor)
{
    switch (state) {
    case PAGE_MAPPING:
        return (struct verdict){.state = PAGE_RESIDENT, .dirty = true};
    case PAGE_RESIDENT:
    case PAGE_ZAPPING:
        return (struct verdict){.state = PAGE_RESIDENT, .dirty = dirty};
    case PAGE_INACTIVE:
    case PAGE_DROPPING:
        return (struct verdict){.state = PAGE_INACTIVE, .dirty = dirty};
    case PAGE_WRITEBACK:
        return (struct verdict){.state = PAGE_INACTIVE, .dirty = true};
    case PAGE_DISCARDING:
        if (held)
            return (struct verdict){.state = PAGE_RESIDENT, .dirty = true};
        return (struct verdict){.state = PAGE_ABSENT, .punch = on_donor};
    case PAGE_POISONED:
        return (struct verdict){.state = PAGE_POISONED};
    default:
        return (struct verdict){.state = PAGE_ABSENT, .punch = on_donor};
    }
}

static struct verdict judge_hole(enum page_state state, bool dirty, bool held)
{
    switch (state) {
    case PAGE_RESIDENT:
    case PAGE_ZAPPING:
    case PAGE_INACTIVE:
    case PAGE_WRITEBACK:
        return (struct verdict){.state = PAGE_ABSENT, .forget = true, .vanished = true};
    case PAGE_MAPPING:
        return (struct verdict){.state = PAGE_ABSENT, .forget = dirty, .vanished = dirty};
    case PAGE_DISCARDING:
        return (struct verdict){.state = PAGE_ABSENT, .forget = held};
    case PAGE_POISONED:
        return (struct verdict){.state = PAGE_POISONED};
    default:
        return (struct verdict){.state = PAGE_ABSENT};
    }
}

/* Replaces the second half of an entry (state, flags, checksum), eight aligned bytes, by one store. */
static void store_entry(struct page *p, enum page_state state, uint8_t flags)
{
    struct page entry = *p;
    uint64_t word;

    entry.state = (uint8_t)state;
    entry.flags = flags;
    entry.left_at = 0; /* epochs begin anew, so the epoch in which the page left means nothing now */
    static_assert(offsetof(struct page, state) == 8 && sizeof(struct page) == 16, "the second half is one word");
    memcpy(&word, &entry.state, sizeof(word));
    __atomic_store_n((uint64_t *)(void *)&p->state, word, __ATOMIC_SEQ_CST);
}

/* Writes the verdict into the page's entry and puts the page on the list of its state. With the lock. */
static void settle(struct page_table *table, uint32_t page, const struct verdict *verdict)
{
    struct page *p = &table->pages[page];
    uint8_t flags = p->flags & (PAGE_F_ON_DONOR | PAGE_F_FORGOTTEN | PAGE_F_SUM);

    if (verdict->forget)
        flags = (uint8_t)((flags & ~PAGE_F_ON_DONOR) | (table->keep ? PAGE_F_FORGOTTEN : 0));
    if (verdict->dirty)
        flags |= PAGE_F_DIRTY;
    if (verdict->state == PAGE_INACTIVE)
        flags |= p->flags & PAGE_F_READAHEAD;
    store_entry(p, verdict->state, flags);
    if (verdict->state == PAGE_RESIDENT)
        page_list_push(table, reclaim_mapped(table, page), page);
    if (verdict->state == PAGE_INACTIVE)
        page_list_push(table, reclaim_inactive(table, page), page);
    table->counts.present += page_is_here(table, page);
    table->counts.dirty += verdict->dirty;
    table->counts.poisoned += verdict->state == PAGE_POISONED;
    /* With --contents keep page_table_create() has counted all pages. */
    table->counts.on_donor += (int64_t)page_on_donor(table, page) - (table->keep ? 1 : 0);
}

static void recover_page(struct pager *pager, struct region *region, uint32_t page, bool here)
{
    const struct page *p = &pager->table.pages[page];
    enum page_state state = (enum page_state)p->state;
    bool dirty = p->flags & PAGE_F_DIRTY, held = p->flags & PAGE_F_HELD;
    bool on_donor = page_on_donor(&pager->table, page);
    struct verdict verdict = here ? judge_here(state, dirty, held, on_donor) : judge_hole(state, dirty, held);

    pager_assert_locked(pager);
    if (verdict.punch) {
        COUNT(pager->counters.foreign_pages, 1);
        log_warning("page %u was made by another mapping: something besides QEMU maps this memory", page);
        region_punch(region, page, 1);
    }
    if (verdict.vanished) {
        COUNT(pager->counters.vanished_pages, 1);
        log_warning("page %u vanished: its memory was discarded, and the pager was not told", page);
    }
    settle(&pager->table, page, &verdict);
    FAULT_POINT(recover_half);
}

void recover_region(struct pager *pager, struct region *region)
{
    uint32_t end = region->first_page + region->n_pages;

    FAULT_POINT(recover_begun);
    for (uint32_t page = region->first_page; page < end;) {
        bool here = true;
        int64_t n = region_run(region, page, end - page, &here);

        if (n <= 0) {
            /*
             * The file is no memfd, or has shrunk. All its pages count as being there; reading one fails when it is
             * needed.
             */
            log_error("cannot tell which pages of process %d are in its memfd", region->pid);
            n = end - page;
        }
        for (uint32_t i = 0; i < (uint32_t)n; i++) {
            if (i % SLICE_PAGES == 0)
                pager_lock(pager);
            recover_page(pager, region, page + i, here);
            if (i % SLICE_PAGES == SLICE_PAGES - 1 || i + 1 == (uint32_t)n)
                pager_unlock(pager);
        }
        page += (uint32_t)n;
    }
    FAULT_POINT(recover_done);
    region_wake(region, region->first_page, region->n_pages);
}

void recover_forget(struct pager *pager, struct region *region)
{
    const struct verdict gone = {.state = PAGE_ABSENT};

    pager_lock(pager);
    for (uint32_t page = region->first_page; page < region->first_page + region->n_pages; page++)
        settle(&pager->table, page, &gone);
    region->leaving = true; /* set first: a region that is neither awaited nor leaving would be watched */
    region->awaited = false;
    pager_unlock(pager);
}

/* Makes a region of its record; if its process still runs, the region waits for it, otherwise it is given up. */
static void await(struct pager *pager, uint32_t id, const struct state_region *record)
{
    struct region *region = &pager->regions[id];

    *region = (struct region){
        .id = id,
        .in_use = true,
        .awaited = true,
        .uffd = -1,
        .memfd = -1,
        .pagemap = -1,
        .pidfd = (int)syscall(SYS_pidfd_open, record->pid, 0),
        .pid = record->pid,
        .base = record->base,
        .length = record->length,
        .memfd_offset = record->memfd_offset,
        .memfd_device = record->memfd_device,
        .memfd_inode = record->memfd_inode,
        .first_page = record->first_page,
        .n_pages = record->n_pages,
    };
    memcpy(region->comm, record->comm, sizeof(region->comm));
    bool ended = region->pidfd < 0 || process_start_ticks(record->pid) != record->process_started;

    if (!ended && atomic_load(&record->status) == STATE_REGION_SERVED) {
        log_info("process %d (%s): waiting for it to hand over its memory again", region->pid, region->comm);
        return;
    }
    log_info("process %d (%s): its memory is given up", record->pid, record->comm);
    recover_forget(pager, region);
}

static bool record_valid(const struct pager *pager, const struct state_region *record)
{
    return record->n_pages > 0 && record->first_page < pager->table.n_pages &&
           record->n_pages <= pager->table.n_pages - record->first_page &&
           record->length == (uint64_t)record->n_pages * PAGE_BYTES;
}

void recover_regions(struct pager *pager)
{
    for (uint32_t i = 0; i < REGIONS_MAX; i++) {
        const struct state_region *record = &pager->state.header->regions[i];

        if (atomic_load(&record->status) == STATE_REGION_FREE || !record_valid(pager, record))
            continue;
        atomic_store(&pager->client_seen, true);
        await(pager, i, record);
    }
}
