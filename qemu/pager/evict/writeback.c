/* SPDX-License-Identifier: MIT */
/*
 * Write-back sends dirty pages to their donors: zap → read → send → ack → punch, always in this order.
 *
 * A page is sent to all copies of its extent that take writes (copies.h). Neighbours go in one request. A page of
 * zeroes is not sent: the donors are told to trim it if they hold anything of it.
 */
#include "evict/writeback.h"

#include "base/clock.h"
#include "base/fault_points.h"
#include "donor/channel.h"
#include "evict/drop.h"
#include "evict/takes.h"
#include "log.h"
#include "page/checksum.h"
#include "page/reclaim_policy.h"
#include "page/runs.h"
#include "page_memory.h"
#include "rebuild/fill.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define TELL_NS 1000000000ull
/* How long after a takeover a write waits for a donor to connect: expects_donors(). */
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
    page_memory_hide(buffers, buffers_bytes(loop));
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

/* Settles a page whose write failed, or was not begun: it becomes INACTIVE again and stays dirty. With the lock. */
static void keep_dirty(struct pager *pager, uint32_t page)
{
    pager_assert_locked(pager);
    if (pager->table.pages[page].state != PAGE_WRITEBACK)
        return; /* a fault took the page back */
    page_set_state(&pager->table, page, PAGE_INACTIVE);
    page_list_push(&pager->table, reclaim_inactive(&pager->table, page), page);
}

/* Settles a page whose bytes, as they were read, the donors now hold: it is clean, and dropped. With the lock. */
static void written(struct evict_loop *loop, uint32_t page, bool zero)
{
    struct pager *pager = loop->pager;

    pager_assert_locked(pager);
    if (pager->table.pages[page].state != PAGE_WRITEBACK) {
        /*
         * A fault took the page back, so it stays dirty. A trim may or may not have removed the donor's old bytes,
         * which count as being there.
         */
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

/* Whether a CURRENT copy has taken this write; behind_too: the copy on the backup counts, too. */
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

/* Makes the copies STALE that the write did not reach, as another copy has taken it. */
static void op_outdates(struct evict_loop *loop, struct write_op *op)
{
    for (uint32_t i = 0; i < COPIES_MAX && op->kind == WRITE_DATA; i++)
        if (op->parts[i].state == PART_FAILED)
            rebuild_copy_missed(&loop->rebuild, op->page / loop->pager->pool.extent_pages, i, op->parts[i].word);
    FAULT_POINT(writeback_stale);
}

/*
 * Settles the pages of a write. Pages of a write that no CURRENT copy has taken stay dirty. A trim that failed does
 * no harm, because a page that is known to be zero is never read from a donor.
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

/* Ends a write whose parts are all over, those to the backup, too. */
static void op_finish(struct evict_loop *loop, struct write_op *op)
{
    if (!op->served) {
        op_serve(loop, op, op_taken(loop, op, true));
    } else {
        op_outdates(loop, op);
        loop->n_behind--;
        pager_mark_io(loop->pager, op->page, op->n_pages, false);
    }
    op_give(loop, op);
}

/* Logs a failure, one a second at most, because hundreds of requests fail at once when a donor goes. */
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

static void part_done(struct request *request)
{
    struct evict_loop *loop = request->owner;
    struct write_part *part = (struct write_part *)request;
    struct write_op *op = part->op;
    struct donor *donor = part_donor(loop, part);

    part->state = request->error ? PART_FAILED : PART_DONE;
    op->n_flying--;
    loop->n_flying[copy_of_word(part->word).donor] -= op->kind == WRITE_DATA;
    op->n_behind -= donor->backup;
    if (request->error) {
        donor_note_write(donor, request->error, clock_ns());
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

/*
 * Whether too many writes are under way to the backup. Then this write leaves the backup out, and its copy is filled
 * anew.
 */
static bool lags_behind(struct evict_loop *loop, const struct write_op *op)
{
    if (op->kind != WRITE_DATA || op->n_flying == 0 || loop->n_behind < BEHIND_MAX)
        return false;
    loop->rebuild.lag_ns = clock_ns();
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
 * Whether a CURRENT copy is on a donor to which this pager, after a takeover, has not been connected yet. A write
 * without that copy would make it STALE only because the pager is new, so the write waits, EXPECT_NS at most.
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

/*
 * Sends a write to all copies that take it; the backup comes last, as lags_behind() needs it. Returns 0 if any part
 * was sent (op_finish() follows), or -errno.
 */
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
                *part = (struct write_part){.request = {.done = part_done, .owner = loop}, .op = op, .word = word};
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
 * Sets the checksums of pages that are about to be sent. A page stays here until the donor has acked it, so its
 * checksum is not needed before that; if the write fails, the page stays dirty and is sent anew.
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

/* Sends pages [page, page + n), whose bytes are in a stage; either all of them are zero or none is. */
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
            written(loop, i, true); /* the donor keeps old bytes, which are never read */
        else
            keep_dirty(pager, i);
    }
    pager_unlock(pager);
}

static bool page_is_zero(const uint8_t *bytes)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, PAGE_BYTES - 1) == 0;
}

/* Whether a donor holds bytes of this zero page. If not, no request is needed. */
static bool needs_trim(struct pager *pager, uint32_t page)
{
    pager_lock(pager);
    bool on_donor = page_on_donor(&pager->table, page);

    pager_unlock(pager);
    return on_donor;
}

/* Settles a zero page that is on no donor. */
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
        pager_mark_io(pager, page + covered, run, true);
        if (op_send(loop, op, NULL) < 0) { /* the donor keeps bytes that are never read again */
            pager_mark_io(pager, page + covered, run, false);
            op_give(loop, op);
        }
        covered += run;
    }
    return covered;
}
