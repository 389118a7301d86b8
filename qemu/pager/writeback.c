/* SPDX-License-Identifier: MIT */
/*
 * Dirty pages to their donors: zap → read → send → ack → punch, in this order, always.
 *
 * To all copies that are to have them: see pool.h. Neighbours go in one request. A page of zeroes is not sent: the
 * donor is told to trim it if it holds anything.
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

#define TELL_NS 1000000000ull
/* After a takeover: see expects_donors(). */
#define EXPECT_NS 3000000000ull

static size_t buffers_bytes(const struct evict_loop *loop)
{
    return (size_t)loop->n_stages * STAGE_PAGES * PAGE_BYTES;
}

static bool has_backup(const struct pool *pool)
{
    for (uint32_t i = 0; i < pool->n_donors; i++)
        if (pool->donors[i].backup)
            return true;
    return false;
}

int writeback_init(struct evict_loop *loop)
{
    loop->n_stages = STAGES + (has_backup(&loop->pager->pool) ? BEHIND_MAX : 0);
    void *buffers =
        mmap(NULL, buffers_bytes(loop), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (buffers == MAP_FAILED)
        return -errno;
    loop->buffers = buffers;
    for (uint32_t i = 0; i < loop->n_stages; i++) {
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
        munmap(loop->buffers, buffers_bytes(loop));
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
    op->served = false;
    op->n_flying = op->n_behind = 0;
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
    return loop->free_stages && loop->free_writes;
}

/* With the lock: the write of this page is over (or was not begun), and it is still to be written. */
static void keep_dirty(struct pager *pager, uint32_t page)
{
    if (pager->table.pages[page].state != PAGE_WRITEBACK)
        return; /* a fault took it back */
    page_set_state(&pager->table, page, PAGE_INACTIVE);
    page_list_push(&pager->table, heat_inactive(&pager->table, page), page);
}

/* With the lock: the donors hold what the page held when it was read. */
static void written(struct evict_loop *loop, uint32_t page, bool zero)
{
    struct pager *pager = loop->pager;

    if (pager->table.pages[page].state != PAGE_WRITEBACK) {
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

static void clear_io(struct pager *pager, uint32_t page)
{
    pager->table.pages[page].flags &= (uint8_t)~PAGE_F_IO;
}

static struct donor *part_donor(struct evict_loop *loop, const struct write_part *part)
{
    return &loop->pager->pool.donors[copy_of_word(part->word).donor];
}

static void count_sent(const struct evict_loop *loop, struct donor *donor, const struct write_op *op,
                       const struct write_part *part)
{
    if (op->kind == WRITE_DATA) {
        const struct place place = pool_place_of(&loop->pager->pool, op->page, 0, part->word);

        atomic_store_explicit(&donor->data_at, place.offset + 1, memory_order_relaxed);
        COUNT(donor->counters.writes, 1);
        COUNT(donor->counters.written_bytes, part->request.bytes);
    } else {
        COUNT(donor->counters.trims, 1);
        COUNT(donor->counters.trimmed_bytes, part->request.bytes);
    }
}

/* Whether a CURRENT copy has this write; of those that are not written behind, or of all. */
static bool op_taken(struct evict_loop *loop, const struct write_op *op, bool behind_too)
{
    const struct pool *pool = &loop->pager->pool;
    const struct extent *extent = &pool->extents[op->page / pool->extent_pages];

    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        struct copy now = copy_load(extent, i), then = copy_of_word(op->parts[i].word);

        if (op->parts[i].state == PART_DONE && now.state == COPY_CURRENT && now.donor == then.donor &&
            now.slot == then.slot && (behind_too || !pool->donors[now.donor].backup))
            return true;
    }
    return false;
}

/* Copies that a write did not reach, while another has it. */
static void op_outdates(struct evict_loop *loop, struct write_op *op)
{
    for (uint32_t i = 0; i < COPIES_MAX && op->kind == WRITE_DATA; i++)
        if (op->parts[i].state == PART_FAILED)
            rebuild_copy_missed(loop, op->page / loop->pager->pool.extent_pages, i, op->parts[i].word);
    FAULT_POINT(writeback_stale);
}

/*
 * The write is over for its pages. A trim that failed is no harm: a page that is known to be zero is never read from
 * a donor. A write that no CURRENT copy took keeps its pages here.
 */
static void op_serve(struct evict_loop *loop, struct write_op *op, bool taken)
{
    struct pager *pager = loop->pager;
    bool over = op->n_flying == 0;

    FAULT_POINT(writeback_acked);
    if (taken)
        op_outdates(loop, op);
    else if (op->kind == WRITE_DATA)
        takes_pause(loop, op->page);
    pager_lock(pager);
    for (uint32_t page = op->page; page < op->page + op->n_pages; page++) {
        if (over)
            clear_io(pager, page);
        if (op->kind == WRITE_DATA && !taken)
            keep_dirty(pager, page);
        else if (op->kind != WRITE_FORGET)
            written(loop, page, op->kind == WRITE_ZERO);
    }
    pager_unlock(pager);
    op->served = true;
    loop->n_behind += !over;
    if (loop->n_dropping >= BATCH_PAGES)
        drop_flush(loop);
}

/* What was written behind is over, too. */
static void op_finish(struct evict_loop *loop, struct write_op *op)
{
    if (!op->served) {
        op_serve(loop, op, op_taken(loop, op, true));
    } else {
        op_outdates(loop, op);
        loop->n_behind--;
        writeback_mark_io(loop->pager, op->page, op->n_pages, false);
    }
    op_give(loop, op);
}

/* A donor that goes takes hundreds of requests along. */
static void log_failure(struct evict_loop *loop, const struct write_op *op, const struct write_part *part)
{
    struct donor *donor = part_donor(loop, part);
    struct failures *failures = &loop->failures[donor - loop->pager->pool.donors];
    uint64_t now_ns = clock_ns();

    failures->n++;
    if (now_ns < failures->told_ns + TELL_NS)
        return;
    log_warning("donor %s: %s of %u pages failed: %s (%u failed since the last such message)", donor->uri,
                op->kind == WRITE_DATA ? "write" : "trim", op->n_pages, strerror(part->request.error), failures->n);
    *failures = (struct failures){.told_ns = now_ns};
}

void writeback_part_done(struct evict_loop *loop, struct request *request)
{
    struct write_part *part = (struct write_part *)request;
    struct write_op *op = part->op;
    struct donor *donor = part_donor(loop, part);

    part->state = request->error ? PART_FAILED : PART_DONE;
    op->n_flying--;
    loop->n_flying[copy_of_word(part->word).donor] -= op->kind == WRITE_DATA;
    op->n_behind -= donor->backup;
    if (request->error) {
        COUNT(donor->counters.errors, 1);
        log_failure(loop, op, part);
    } else {
        count_sent(loop, donor, op, part);
    }
    if (op->n_flying == 0)
        op_finish(loop, op);
    else if (!op->served && op->n_flying == op->n_behind && op_taken(loop, op, false))
        op_serve(loop, op, true);
}

bool writeback_touches(const struct evict_loop *loop, uint32_t donor, uint32_t slot)
{
    for (uint32_t w = 0; w < WRITES && loop->writes_in_flight > 0; w++)
        for (uint32_t i = 0; loop->writes[w].n_flying > 0 && i < COPIES_MAX; i++) {
            const struct write_part *part = &loop->writes[w].parts[i];
            struct copy copy = copy_of_word(part->word);

            if (part->state == PART_FLYING && copy.donor == donor && copy.slot == slot)
                return true;
        }
    return false;
}

/* Too much is under way to copies that are written behind: those of others have to be filled anew. */
static bool lags_behind(struct evict_loop *loop, const struct write_op *op)
{
    if (op->kind != WRITE_DATA || op->n_flying == 0 || loop->n_behind < BEHIND_MAX)
        return false;
    loop->lag_ns = clock_ns();
    return true;
}

static int part_send(struct evict_loop *loop, struct write_op *op, uint32_t index, const uint8_t *bytes)
{
    struct write_part *part = &op->parts[index];
    struct place place = pool_place_of(&loop->pager->pool, op->page, index, part->word);
    struct channel *channel = &place.donor->channels[CHANNEL_WRITEBACK];
    uint32_t length = op->n_pages * PAGE_BYTES;

    if (place.donor->backup && lags_behind(loop, op))
        return -EBUSY;
    if (op->kind == WRITE_DATA)
        return channel_write(channel, &part->request, bytes, length, place.offset);
    return channel_trim(channel, &part->request, length, place.offset);
}

/*
 * A copy on a donor that this pager was not connected to so far: it would be STALE for no other reason than that this
 * pager is new. It is waited for, but not for long.
 */
static bool expects_donors(const struct evict_loop *loop, const struct write_op *op)
{
    const struct pool *pool = &loop->pager->pool;
    const struct extent *extent = &pool->extents[op->page / pool->extent_pages];

    if (op->kind != WRITE_DATA || clock_ns() - loop->pager->started_ns > EXPECT_NS)
        return false;
    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        struct copy copy = copy_load(extent, i);
        const struct donor *donor = &pool->donors[copy.donor];

        if (copy.state == COPY_CURRENT && donor->channels[CHANNEL_WRITEBACK].inherited && !donor_gone(donor))
            return true;
    }
    return false;
}

/* Returns 0 or -errno; on success the op's end follows. Copies that are written behind come last: see pool.h. */
static int op_send(struct evict_loop *loop, struct write_op *op, const uint8_t *bytes)
{
    struct pool *pool = &loop->pager->pool;
    const struct extent *extent = &pool->extents[op->page / pool->extent_pages];
    int result = -ENOTCONN;

    if (expects_donors(loop, op))
        return result;
    for (uint32_t turn = 0; turn < 2; turn++)
        for (uint32_t i = 0; i < COPIES_MAX; i++) {
            struct write_part *part = &op->parts[i];
            uint64_t word = copy_word(extent, i);
            struct copy copy = copy_of_word(word);
            bool takes = copy.state == COPY_CURRENT || copy.state == COPY_FILLING;

            if (turn == 0)
                *part = (struct write_part){.op = op, .word = word};
            if (!takes || pool->donors[copy.donor].backup != (turn == 1))
                continue;
            int rc = part_send(loop, op, i, bytes);

            part->state = rc == 0 ? PART_FLYING : PART_FAILED;
            op->n_flying += rc == 0;
            loop->n_flying[copy.donor] += rc == 0 && op->kind == WRITE_DATA;
            op->n_behind += rc == 0 && turn == 1;
            result = rc == 0 || result == 0 ? 0 : rc;
        }
    return result;
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
        takes_pause(loop, page);
    pager_lock(pager);
    for (uint32_t i = page; i < page + n; i++) {
        clear_io(pager, i);
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
    clear_io(loop->pager, page);
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
    for (uint32_t i = 0; i < n; i++) {
        clear_io(pager, page + i);
        keep_dirty(pager, page + i);
    }
    pager_unlock(pager);
}

void writeback_start(struct evict_loop *loop, const uint32_t *pages, uint32_t n)
{
    struct pager *pager = loop->pager;

    for (uint32_t i = 0; i < n;) {
        uint32_t left = pool_left(&pager->pool, pages[i]);
        uint32_t max = left < STAGE_PAGES ? left : STAGE_PAGES;
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
        uint32_t left = pool_left(&pager->pool, page + covered);
        uint32_t run = n - covered < left ? n - covered : left;
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
