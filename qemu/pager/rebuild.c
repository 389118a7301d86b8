/* SPDX-License-Identifier: MIT */
/*
 * Fills one copy of one extent at a time from another copy, while the extent is in use.
 *
 * The copy takes every write from the moment that it is FILLING. So what is left are the pages whose bytes lie on the
 * donors and are not dirty here. A run of them is taken (PAGE_F_IO: no write of theirs may start), read from a
 * CURRENT copy, compared with their checksums, written and given back. A page whose own write was under way when its
 * turn came is visited again, for that write may have begun before the copy was FILLING. Pages that are not on a
 * donor, or dirty, will come by themselves.
 *
 * A page whose bytes are wrong in every copy that can be read is left out: what the copy that is filled held before
 * may be right. Its checksum tells, wherever it is read.
 */
#include "checksum.h"
#include "clock.h"
#include "evict.h"
#include "fault_points.h"
#include "log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PLAN_NS      500000000ull
#define PAUSE_NS     300000000ull
#define BURST_NS     4000000ull
#define ATTEMPTS     4u
#define LOOKED_MAX   4096u /* pages looked at in one turn */
#define WORD_BITS    64u
#define BUFFER_BYTES ((size_t)CHUNK_PAGES * PAGE_BYTES)

int rebuild_init(struct evict_loop *loop)
{
    struct rebuild *rebuild = &loop->rebuild;
    uint32_t n_words = (loop->pager->pool.extent_pages + WORD_BITS - 1) / WORD_BITS;
    void *buffers = mmap(NULL, CHUNKS * BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (buffers == MAP_FAILED)
        return -errno;
    rebuild->buffers = buffers;
    rebuild->todo = calloc(n_words, sizeof(*rebuild->todo));
    rebuild->unsettled = calloc(loop->pager->pool.n_extents, sizeof(*rebuild->unsettled));
    for (uint32_t i = 0; i < CHUNKS; i++)
        rebuild->chunks[i].buf = rebuild->buffers + i * BUFFER_BYTES;
    rebuild->asked = true;
    return rebuild->todo && rebuild->unsettled ? 0 : -ENOMEM;
}

void rebuild_destroy(struct evict_loop *loop)
{
    if (loop->rebuild.buffers)
        munmap(loop->rebuild.buffers, CHUNKS * BUFFER_BYTES);
    free(loop->rebuild.todo);
    free(loop->rebuild.unsettled);
}

void pager_suspect(struct pager *pager, uint32_t page, uint32_t copy, uint64_t word)
{
    struct suspects *suspects = &pager->suspects;

    pthread_mutex_lock(&suspects->lock);
    if (suspects->n < SUSPECTS_MAX)
        suspects->list[suspects->n++] = (struct suspect){page / pager->pool.extent_pages, copy, word};
    pthread_mutex_unlock(&suspects->lock);
    pager_wake_evict(pager);
}

void rebuild_copy_missed(struct evict_loop *loop, uint32_t extent, uint32_t index, uint64_t word)
{
    struct extent *e = &loop->pager->pool.extents[extent];
    struct copy then = copy_of_word(word), now = copy_load(e, index);

    if (now.donor != then.donor || now.slot != then.slot || (now.state != COPY_CURRENT && now.state != COPY_FILLING))
        return;
    now.state = COPY_STALE;
    copy_store(e, index, now);
    loop->rebuild.asked = true;
}

static bool has_other_current(const struct pool *pool, uint32_t extent, uint32_t index)
{
    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        struct copy copy = copy_load(&pool->extents[extent], i);

        if (i != index && copy.state == COPY_CURRENT && !atomic_load(&pool->donors[copy.donor].lost))
            return true;
    }
    return false;
}

/* A copy that gave something else than was written to it is filled anew, if there is another to fill it from. */
static void suspect_copy(struct evict_loop *loop, uint32_t extent, uint32_t index, uint64_t word)
{
    if (copy_word(&loop->pager->pool.extents[extent], index) != word ||
        !has_other_current(&loop->pager->pool, extent, index))
        return;
    log_warning("donor %s: its copy of extent %u is not what was written; it is made anew",
                loop->pager->pool.donors[copy_of_word(word).donor].uri, extent);
    rebuild_copy_missed(loop, extent, index, word);
}

static void take_suspects(struct evict_loop *loop)
{
    struct suspects *suspects = &loop->pager->suspects;
    struct suspect list[SUSPECTS_MAX];

    pthread_mutex_lock(&suspects->lock);
    uint32_t n = suspects->n;

    memcpy(list, suspects->list, n * sizeof(*list));
    suspects->n = 0;
    pthread_mutex_unlock(&suspects->lock);
    for (uint32_t i = 0; i < n; i++)
        suspect_copy(loop, list[i].extent, list[i].copy, list[i].word);
}

static bool is_todo(const struct rebuild *rebuild, uint32_t i)
{
    return rebuild->todo[i / WORD_BITS] >> (i % WORD_BITS) & 1;
}

static void set_done(struct rebuild *rebuild, uint32_t i)
{
    rebuild->todo[i / WORD_BITS] &= ~(1ull << (i % WORD_BITS));
    rebuild->n_todo--;
}

static void fill_start(struct evict_loop *loop, const struct fill_job *job)
{
    struct rebuild *rebuild = &loop->rebuild;
    struct pool *pool = &loop->pager->pool;

    copy_store(&pool->extents[job->extent], job->copy, job->target);
    rebuild->job = *job;
    rebuild->job_word = copy_word(&pool->extents[job->extent], job->copy);
    rebuild->filling = true;
    rebuild->failed = false;
    rebuild->n_todo = pool->extent_pages;
    rebuild->next = 0;
    memset(rebuild->todo, 0xff, (pool->extent_pages + WORD_BITS - 1) / WORD_BITS * sizeof(*rebuild->todo));
    FAULT_POINT(rebuild_begun);
}

/* The copy is what it was when its filling began: FILLING. If not, a write has missed it. */
static bool fill_stands(const struct evict_loop *loop)
{
    const struct rebuild *rebuild = &loop->rebuild;

    return copy_word(&loop->pager->pool.extents[rebuild->job.extent], rebuild->job.copy) == rebuild->job_word;
}

static void fill_end(struct evict_loop *loop)
{
    struct rebuild *rebuild = &loop->rebuild;
    struct extent *extent = &loop->pager->pool.extents[rebuild->job.extent];

    rebuild->filling = false;
    rebuild->asked = true;
    if (rebuild->failed || !fill_stands(loop)) {
        rebuild_copy_missed(loop, rebuild->job.extent, rebuild->job.copy, rebuild->job_word);
        rebuild->pause_ns = clock_ns() + PAUSE_NS;
        return;
    }
    FAULT_POINT(rebuild_filled);
    struct copy copy = copy_load(extent, rebuild->job.copy);

    copy.state = COPY_CURRENT;
    copy_store(extent, rebuild->job.copy, copy);
    FAULT_POINT(rebuild_current);
    if (rebuild->job.drop != NOT_A_COPY && copy_load(extent, rebuild->job.drop).state == COPY_CURRENT)
        copy_drop(loop, rebuild->job.extent, rebuild->job.drop);
}

/* Gives the chunk's pages back. */
static void chunk_end(struct evict_loop *loop, struct chunk *chunk, bool failed)
{
    struct rebuild *rebuild = &loop->rebuild;

    writeback_mark_io(loop->pager, chunk->page, chunk->n_pages, false);
    chunk->state = CHUNK_IDLE;
    rebuild->n_flying--;
    rebuild->failed = rebuild->failed || failed;
}

static void chunk_read(struct evict_loop *loop, struct chunk *chunk)
{
    struct pool *pool = &loop->pager->pool;

    chunk->state = CHUNK_READING;
    while (chunk->attempts++ < ATTEMPTS) {
        if (!pool_pick(pool, chunk->page, CHANNEL_WRITEBACK, chunk->tried_mask, &chunk->source)) {
            if (!chunk->tried_mask)
                break;
            chunk->tried_mask = 0;
            continue;
        }
        if (channel_read(&chunk->source.donor->channels[CHANNEL_WRITEBACK], &chunk->request, chunk->buf,
                         chunk->n_pages * PAGE_BYTES, chunk->source.offset) == 0)
            return;
        chunk->tried_mask |= 1u << chunk->source.copy;
    }
    chunk_end(loop, chunk, true);
}

/* The checksum stays as long as PAGE_F_IO; the flags beside it belong to others, too. */
static bool page_wrong(const struct evict_loop *loop, const struct chunk *chunk, uint32_t i)
{
    struct pager *pager = loop->pager;

    pager_lock(pager);
    struct page page = pager->table.pages[chunk->page + i];

    pager_unlock(pager);
    return (page.flags & PAGE_F_SUM) && checksum_page(chunk->buf + (size_t)i * PAGE_BYTES) != page.checksum;
}

/* How many of the chunk's pages are not what was written. */
static uint32_t chunk_wrong(struct evict_loop *loop, const struct chunk *chunk)
{
    uint32_t n_wrong = 0;

    for (uint32_t i = 0; i < chunk->n_pages; i++) {
        if (!page_wrong(loop, chunk, i))
            continue;
        n_wrong++;
        donor_count_checksum_error(chunk->source.donor);
        log_error("donor %s: the page at offset %llu is not what was written there (checksum)",
                  chunk->source.donor->uri, (unsigned long long)chunk->source.offset + (uint64_t)i * PAGE_BYTES);
    }
    return n_wrong;
}

/* The others are to be taken again, without the wrong ones. */
static void chunk_leave_out_wrong(struct evict_loop *loop, struct chunk *chunk)
{
    struct rebuild *rebuild = &loop->rebuild;
    uint32_t first = chunk->page % loop->pager->pool.extent_pages;

    for (uint32_t i = 0; i < chunk->n_pages; i++)
        if (!page_wrong(loop, chunk, i)) {
            rebuild->todo[(first + i) / WORD_BITS] |= 1ull << ((first + i) % WORD_BITS);
            rebuild->n_todo++;
        }
    chunk_end(loop, chunk, false);
}

static void chunk_write(struct evict_loop *loop, struct chunk *chunk)
{
    const struct rebuild *rebuild = &loop->rebuild;
    struct place place = pool_place_of(&loop->pager->pool, chunk->page, rebuild->job.copy, rebuild->job_word);

    chunk->state = CHUNK_WRITING;
    if (!fill_stands(loop) || channel_write(&place.donor->channels[CHANNEL_WRITEBACK], &chunk->request, chunk->buf,
                                            chunk->n_pages * PAGE_BYTES, place.offset) < 0)
        chunk_end(loop, chunk, true);
}

static void chunk_arrived(struct evict_loop *loop, struct chunk *chunk)
{
    struct donor *donor = chunk->source.donor;
    bool moved =
        copy_word(&loop->pager->pool.extents[loop->rebuild.job.extent], chunk->source.copy) != chunk->source.word;

    if (chunk->request.error || moved) {
        COUNT(donor->counters.errors, !moved);
        chunk->tried_mask |= 1u << chunk->source.copy;
        chunk_read(loop, chunk);
        return;
    }
    FAULT_POINT(rebuild_read);
    COUNT(donor->counters.read_bytes, chunk->request.bytes);
    if (chunk_wrong(loop, chunk) == 0) {
        chunk_write(loop, chunk);
    } else if (chunk->attempts < ATTEMPTS) {
        suspect_copy(loop, loop->rebuild.job.extent, chunk->source.copy, chunk->source.word);
        chunk_read(loop, chunk);
    } else {
        chunk_leave_out_wrong(loop, chunk);
    }
}

static void chunk_written(struct evict_loop *loop, struct chunk *chunk)
{
    struct pool *pool = &loop->pager->pool;
    struct donor *donor = &pool->donors[loop->rebuild.job.target.donor];

    if (chunk->request.error) {
        COUNT(donor->counters.errors, 1);
        chunk_end(loop, chunk, true);
        return;
    }
    FAULT_POINT(rebuild_written);
    COUNT(donor->counters.writes, 1);
    COUNT(donor->counters.written_bytes, chunk->request.bytes);
    COUNT(loop->pager->rebuild_status.done_bytes, chunk->request.bytes);
    chunk_end(loop, chunk, false);
}

bool rebuild_request_done(struct evict_loop *loop, struct request *request)
{
    struct rebuild *rebuild = &loop->rebuild;
    const char *at = (const char *)request;

    if (at >= (const char *)rebuild->trims && at < (const char *)(rebuild->trims + DONORS_MAX)) {
        slot_trim_done(loop, (struct slot_trim *)request);
        return true;
    }
    if (at < (const char *)rebuild->chunks || at >= (const char *)(rebuild->chunks + CHUNKS))
        return false;
    struct chunk *chunk = (struct chunk *)request;

    if (chunk->state == CHUNK_READING)
        chunk_arrived(loop, chunk);
    else
        chunk_written(loop, chunk);
    return true;
}

/* With the lock: whether the page has to be read and written, or is done, or its own write is under way. */
enum page_need { NEED_NOTHING, NEED_LATER, NEED_COPY };

static enum page_need page_need(const struct page_table *table, uint32_t page)
{
    const struct page *p = &table->pages[page];

    /* Discarded: the donors are about to be told, and its end is not to find a copy of ours under way. */
    if ((p->flags & PAGE_F_IO) || p->state == PAGE_DISCARDING)
        return NEED_LATER;
    if (!page_on_donor(table, page) || (p->flags & PAGE_F_DIRTY) || p->state == PAGE_POISONED)
        return NEED_NOTHING;
    return NEED_COPY;
}

/* The next run that is to be copied, taken; 0 if there is none for now. */
static uint32_t take_run(struct evict_loop *loop, uint32_t *first)
{
    struct rebuild *rebuild = &loop->rebuild;
    struct page_table *table = &loop->pager->table;
    uint32_t n_pages = loop->pager->pool.extent_pages, base = rebuild->job.extent * n_pages, n = 0;

    pager_lock(loop->pager);
    for (uint32_t looked = 0; looked < LOOKED_MAX && rebuild->next < n_pages && n < CHUNK_PAGES; looked++) {
        uint32_t i = rebuild->next;
        enum page_need need = is_todo(rebuild, i) ? page_need(table, base + i) : NEED_LATER;

        if (need == NEED_COPY) {
            table->pages[base + i].flags |= PAGE_F_IO;
            *first = n ? *first : base + i;
            n++;
        } else if (n > 0) {
            break;
        }
        if (need != NEED_LATER)
            set_done(rebuild, i);
        rebuild->next++;
    }
    pager_unlock(loop->pager);
    return n;
}

static void rate_spend(struct rebuild *rebuild, uint64_t rate, uint64_t bytes)
{
    uint64_t earliest_ns = clock_ns() - BURST_NS;

    if (rate == 0)
        return;
    if (rebuild->next_ns < earliest_ns)
        rebuild->next_ns = earliest_ns;
    rebuild->next_ns += bytes * 1000000000ull / rate;
}

static struct chunk *idle_chunk(struct rebuild *rebuild)
{
    for (uint32_t i = 0; i < CHUNKS; i++)
        if (rebuild->chunks[i].state == CHUNK_IDLE)
            return &rebuild->chunks[i];
    return NULL;
}

/* Returns whether it could go on at once. */
static bool fill_step(struct evict_loop *loop)
{
    struct rebuild *rebuild = &loop->rebuild;
    struct chunk *chunk = idle_chunk(rebuild);
    uint64_t rate = atomic_load(&loop->pager->rebuild_status.rate);
    uint32_t first = 0;

    if (!chunk || rebuild->n_todo == 0 || (rate && clock_ns() < rebuild->next_ns))
        return false;
    uint32_t n = take_run(loop, &first);

    if (n == 0) {
        bool end = rebuild->next >= loop->pager->pool.extent_pages;

        if (end)
            rebuild->next = 0; /* once more, for those that were left */
        return !end;
    }
    FAULT_POINT(rebuild_taken);
    rate_spend(rebuild, rate, (uint64_t)n * PAGE_BYTES);
    chunk->page = first;
    chunk->n_pages = n;
    chunk->attempts = chunk->tried_mask = 0;
    rebuild->n_flying++;
    chunk_read(loop, chunk);
    return !rebuild->failed;
}

static int fill_turn(struct evict_loop *loop)
{
    struct rebuild *rebuild = &loop->rebuild;

    rebuild->failed = rebuild->failed || !fill_stands(loop);
    while (!rebuild->failed && fill_step(loop))
        continue;
    if (rebuild->n_flying == 0 && (rebuild->failed || rebuild->n_todo == 0)) {
        fill_end(loop);
        return 0;
    }
    return rebuild->n_flying == CHUNKS ? -1 : 1;
}

/* Since when donors are away. */
static void watch_donors(struct evict_loop *loop)
{
    struct pool *pool = &loop->pager->pool;

    for (uint32_t i = 0; i < pool->n_donors; i++) {
        struct donor *donor = &pool->donors[i];
        bool away = !donor_reachable(donor), was_away = atomic_load(&donor->away_since_ns) != 0;

        if (away == was_away)
            continue;
        atomic_store(&donor->away_since_ns, away ? clock_ns() : 0);
        loop->rebuild.asked = true;
    }
}

int rebuild_turn(struct evict_loop *loop)
{
    struct rebuild *rebuild = &loop->rebuild;
    struct fill_job job;
    uint64_t now = clock_ns();

    watch_donors(loop);
    take_suspects(loop);
    slots_mind(loop);
    if (rebuild->filling)
        return fill_turn(loop);
    if (now < rebuild->pause_ns)
        return (int)((rebuild->pause_ns - now) / 1000000 + 1);
    bool asked = atomic_exchange(&loop->pager->rebuild_status.asked, false) || rebuild->asked;

    if (!asked && now < rebuild->plan_ns)
        return -1;
    rebuild->asked = false;
    rebuild->plan_ns = now + PLAN_NS;
    lost_mind(loop);
    bool found = plan_next(loop, &job);

    atomic_store(&loop->pager->rebuild_status.active, found);
    atomic_store(&loop->pager->rebuild_status.extents_left, plan_left(loop));
    if (!found)
        return -1;
    fill_start(loop, &job);
    return 0;
}
