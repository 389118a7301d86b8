/* SPDX-License-Identifier: MIT */
/*
 * Dirty pages to their donors: zap → read → send → ack → punch, in this order, always.
 *
 * Neighbours go in one request. A page of zeroes is not sent: the donor is told to trim it if it holds anything.
 */
#include "checksum.h"
#include "clock.h"
#include "evict.h"
#include "fault_points.h"
#include "heat.h"
#include "log.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define PAUSE_NS 100000000ull

static size_t buffers_bytes(void)
{
    return (size_t)STAGES * STAGE_PAGES * PAGE_BYTES;
}

int writeback_init(struct evict_loop *loop)
{
    void *buffers =
        mmap(NULL, buffers_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (buffers == MAP_FAILED)
        return -errno;
    loop->buffers = buffers;
    for (uint32_t i = 0; i < STAGES; i++) {
        loop->stages[i] =
            (struct stage){.next = loop->free_stages, .buf = loop->buffers + (size_t)i * STAGE_PAGES * PAGE_BYTES};
        loop->free_stages = &loop->stages[i];
    }
    for (uint32_t i = 0; i < WRITES; i++) {
        loop->writes[i].next = loop->free_writes;
        loop->free_writes = &loop->writes[i];
    }
    return 0;
}

void writeback_destroy(struct evict_loop *loop)
{
    if (loop->buffers)
        munmap(loop->buffers, buffers_bytes());
}

static struct stage *stage_take(struct evict_loop *loop)
{
    struct stage *stage = loop->free_stages;

    if (stage) {
        loop->free_stages = stage->next;
        stage->users = 1;
    }
    return stage;
}

static void stage_drop(struct evict_loop *loop, struct stage *stage)
{
    if (!stage || --stage->users > 0)
        return;
    stage->next = loop->free_stages;
    loop->free_stages = stage;
}

static struct write_op *op_take(struct evict_loop *loop, enum write_kind kind, uint32_t page, uint32_t n)
{
    struct write_op *op = loop->free_writes;

    if (!op)
        return NULL;
    loop->free_writes = op->next;
    op->kind = kind;
    op->page = page;
    op->n_pages = n;
    op->stage = NULL;
    loop->writes_in_flight++;
    return op;
}

static void op_give(struct evict_loop *loop, struct write_op *op)
{
    stage_drop(loop, op->stage);
    op->next = loop->free_writes;
    loop->free_writes = op;
    loop->writes_in_flight--;
}

bool writeback_possible(const struct evict_loop *loop)
{
    return loop->free_stages && loop->free_writes && clock_ns() >= loop->writeback_pause_ns;
}

/* With the lock: the write of this page is over (or was not begun), and it is still to be written. */
static void keep_dirty(struct pager *pager, uint32_t page)
{
    struct page *p = &pager->table.pages[page];

    p->flags &= (uint8_t)~PAGE_F_IO;
    if (p->state != PAGE_WRITEBACK)
        return; /* a fault took it back */
    page_set_state(&pager->table, page, PAGE_INACTIVE);
    page_list_push(&pager->table, heat_inactive(&pager->table, page), page);
}

/* With the lock: the donor holds what the page held when it was read. */
static void written(struct evict_loop *loop, uint32_t page, bool zero)
{
    struct pager *pager = loop->pager;
    struct page *p = &pager->table.pages[page];

    p->flags &= (uint8_t)~PAGE_F_IO;
    if (p->state != PAGE_WRITEBACK) {
        /* Taken back: dirty as it was. A trim may have removed an old copy, or not: it counts as there. */
        if (!zero)
            page_set_on_donor(&pager->table, page, true);
        return;
    }
    page_set_dirty(&pager->table, page, false);
    FAULT_POINT(writeback_clean);
    page_set_on_donor(&pager->table, page, !zero);
    FAULT_POINT(writeback_on_donor);
    drop_add(loop, page);
    if (zero)
        COUNT(pager->counters.evicted_zero, 1);
    else
        COUNT(pager->counters.evicted_dirty, 1);
}

static void count_sent(struct donor *donor, const struct write_op *op)
{
    if (op->kind == WRITE_DATA) {
        COUNT(donor->counters.writes, 1);
        COUNT(donor->counters.written_bytes, op->request.bytes);
    } else {
        COUNT(donor->counters.trims, 1);
        COUNT(donor->counters.trimmed_bytes, op->request.bytes);
    }
}

/*
 * A trim that failed is no harm: a page that is known to be zero is never read from the donor.
 * A write that failed keeps its pages here.
 */
static void op_finish(struct evict_loop *loop, struct write_op *op, struct donor *donor)
{
    struct pager *pager = loop->pager;
    bool failed = op->request.error != 0;

    FAULT_POINT(writeback_acked);
    if (failed) {
        COUNT(donor->counters.errors, 1);
        log_warning("donor %s: %s of %u pages failed: %s", donor->uri, op->kind == WRITE_DATA ? "write" : "trim",
                    op->n_pages, strerror(op->request.error));
        loop->writeback_pause_ns = clock_ns() + PAUSE_NS;
    } else {
        count_sent(donor, op);
    }
    pager_lock(pager);
    for (uint32_t page = op->page; page < op->page + op->n_pages; page++) {
        if (op->kind == WRITE_FORGET)
            pager->table.pages[page].flags &= (uint8_t)~PAGE_F_IO;
        else if (failed && op->kind == WRITE_DATA)
            keep_dirty(pager, page);
        else
            written(loop, page, op->kind == WRITE_ZERO);
    }
    pager_unlock(pager);
    op_give(loop, op);
    if (loop->n_dropping >= BATCH_PAGES)
        drop_flush(loop);
}

void writeback_finish(struct evict_loop *loop, struct channel *channel)
{
    struct request *request;

    while ((request = channel_done(channel)))
        op_finish(loop, (struct write_op *)request, channel->donor);
}

/* Returns 0 or -errno; on success the op's completion follows. */
static int op_send(struct evict_loop *loop, struct write_op *op, const uint8_t *bytes)
{
    struct place place = pool_place(&loop->pager->pool, op->page);
    struct channel *channel = &place.donor->channels[CHANNEL_WRITEBACK];
    uint32_t length = op->n_pages * PAGE_BYTES;

    if (op->kind == WRITE_DATA)
        return channel_write(channel, &op->request, bytes, length, place.offset);
    return channel_trim(channel, &op->request, length, place.offset);
}

/*
 * Of what is about to be sent. Until the donor has acked it the page stays here, so that the checksum is not asked
 * for; if the write fails, the page stays dirty and is sent anew.
 */
static void set_checksums(struct pager *pager, uint32_t page, uint32_t n, const uint8_t *bytes)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t checksum = checksum_page(bytes + (size_t)i * PAGE_BYTES);

        pager_lock(pager);
        pager->table.pages[page + i].checksum = checksum;
        pager->table.pages[page + i].flags |= PAGE_F_SUM;
        pager_unlock(pager);
    }
}

/* Pages [page, page + n), all zero or all not, from a stage. */
static void send_run(struct evict_loop *loop, struct stage *stage, uint32_t page, uint32_t n, const uint8_t *bytes,
                     bool zero)
{
    struct pager *pager = loop->pager;
    struct write_op *op = op_take(loop, zero ? WRITE_ZERO : WRITE_DATA, page, n);
    int rc = op ? 0 : -EAGAIN;

    if (op && !zero) {
        op->stage = stage;
        stage->users++;
        set_checksums(pager, page, n, bytes);
        FAULT_POINT(writeback_summed);
    }
    if (op)
        rc = op_send(loop, op, bytes);
    FAULT_POINT(writeback_sent);
    if (rc == 0)
        return;
    if (op)
        op_give(loop, op);
    if (!zero && rc != -EAGAIN)
        loop->writeback_pause_ns = clock_ns() + PAUSE_NS;
    pager_lock(pager);
    for (uint32_t i = page; i < page + n; i++) {
        if (zero)
            written(loop, i, true); /* the donor keeps an old copy that is never read */
        else
            keep_dirty(pager, i);
    }
    pager_unlock(pager);
}

static bool page_is_zero(const uint8_t *bytes)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, PAGE_BYTES - 1) == 0;
}

/* With or without anything on the donor: a zero page that was never written there needs no request at all. */
static bool needs_trim(struct pager *pager, uint32_t page)
{
    pager_lock(pager);
    bool on_donor = page_on_donor(&pager->table, page);

    pager_unlock(pager);
    return on_donor;
}

static void zero_without_trace(struct evict_loop *loop, uint32_t page)
{
    pager_lock(loop->pager);
    written(loop, page, true);
    pager_unlock(loop->pager);
}

static void send_stage(struct evict_loop *loop, struct stage *stage, uint32_t page, uint32_t n)
{
    for (uint32_t i = 0; i < n;) {
        const uint8_t *bytes = stage->buf + (size_t)i * PAGE_BYTES;
        bool zero = page_is_zero(bytes);
        uint32_t run = 1;

        while (i + run < n && page_is_zero(bytes + (size_t)run * PAGE_BYTES) == zero)
            run++;
        if (zero && !needs_trim(loop->pager, page + i)) {
            zero_without_trace(loop, page + i);
            i++;
            continue;
        }
        send_run(loop, stage, page + i, run, bytes, zero);
        i += run;
    }
}

static void keep_run(struct pager *pager, uint32_t page, uint32_t n)
{
    pager_lock(pager);
    for (uint32_t i = 0; i < n; i++)
        keep_dirty(pager, page + i);
    pager_unlock(pager);
}

void writeback_start(struct evict_loop *loop, const uint32_t *pages, uint32_t n)
{
    struct pager *pager = loop->pager;

    for (uint32_t i = 0; i < n;) {
        struct place place = pool_place(&pager->pool, pages[i]);
        uint32_t max = place.n_pages < STAGE_PAGES ? place.n_pages : STAGE_PAGES;
        uint32_t run = run_length(pages + i, n - i, max);
        struct stage *stage = stage_take(loop);

        pager_lock(pager);
        struct region *region = pager_region_of(pager, pages[i]);

        if (region && !region_holds(region, pages[i] + run - 1))
            run = region->first_page + region->n_pages - pages[i];
        pager_unlock(pager);
        int rc = stage && region ? region_read(region, pages[i], stage->buf, run) : -EAGAIN;

        FAULT_POINT(writeback_read);
        if (rc == 0) {
            send_stage(loop, stage, pages[i], run);
        } else {
            if (rc != -EAGAIN)
                log_error("cannot read the memory of process %d: %s", region->pid, strerror(-rc));
            keep_run(pager, pages[i], run);
        }
        stage_drop(loop, stage);
        i += run;
    }
}

void writeback_mark_io(struct pager *pager, uint32_t page, uint32_t n, bool io)
{
    pager_lock(pager);
    for (uint32_t i = page; i < page + n; i++) {
        uint8_t *flags = &pager->table.pages[i].flags;

        *flags = (uint8_t)(io ? *flags | PAGE_F_IO : *flags & ~PAGE_F_IO);
    }
    pager_unlock(pager);
}

uint32_t writeback_forget(struct evict_loop *loop, uint32_t page, uint32_t n)
{
    struct pager *pager = loop->pager;
    uint32_t covered = 0;

    while (covered < n) {
        struct place place = pool_place(&pager->pool, page + covered);
        uint32_t run = n - covered < place.n_pages ? n - covered : place.n_pages;
        struct write_op *op = op_take(loop, WRITE_FORGET, page + covered, run);

        if (!op)
            break;
        writeback_mark_io(pager, page + covered, run, true);
        if (op_send(loop, op, NULL) < 0) { /* the donor keeps what is never read again */
            writeback_mark_io(pager, page + covered, run, false);
            op_give(loop, op);
        }
        covered += run;
    }
    return covered;
}
