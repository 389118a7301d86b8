/* SPDX-License-Identifier: MIT */
/*
 * Fills one copy of one extent at a time from another copy, while the extent is in use.
 *
 * From the moment at which it is FILLING the copy takes all writes. So the pages that have to be filled are those
 * whose bytes are on the donors and that are not dirty here. A run of these pages is taken (PAGE_F_IO: no write of
 * them may start), read from a CURRENT copy, compared with the checksums, written and given back. A page whose own
 * write is under way when its turn comes is visited again, because that write may have begun before the copy was
 * FILLING. Pages that are dirty, or on no donor, reach the copy when they are written back.
 *
 * A page whose bytes are wrong in all copies that can be read is left out, because the slot that is filled may hold
 * the right ones. Its checksum tells, wherever the page is read.
 */
#include "rebuild/fill.h"

#include "base/clock.h"
#include "base/fault_points.h"
#include "donor/channel.h"
#include "log.h"
#include "page/checksum.h"
#include "page_memory.h"
#include "pool/slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAUSE_NS     300000000ull
#define BURST_NS     4000000ull
#define ATTEMPTS     4u
#define LOOKED_MAX   4096u /* pages looked at in one turn */
#define WORD_BITS    64u
#define BUFFER_BYTES ((size_t)CHUNK_PAGES * PAGE_BYTES)

void rebuild_copy_missed(struct rebuild *rebuild, uint32_t extent, uint32_t index, uint64_t word)
{
    if (copy_missed(&rebuild->pager->pool.extents[extent], index, word))
        rebuild->asked = true;
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

/* Has a copy that gave other bytes than were written to it filled anew, if there is another copy to fill it from. */
static void suspect_copy(struct rebuild *rebuild, uint32_t extent, uint32_t index, uint64_t word)
{
    if (copy_word(&rebuild->pager->pool.extents[extent], index) != word ||
        !has_other_current(&rebuild->pager->pool, extent, index))
        return;
    log_warning("donor %s: its copy of extent %u is not what was written; it is made anew",
                rebuild->pager->pool.donors[copy_of_word(word).donor].uri, extent);
    rebuild_copy_missed(rebuild, extent, index, word);
}

void fill_take_suspects(struct rebuild *rebuild)
{
    struct suspect list[SUSPECTS_MAX];
    uint32_t n = suspects_take(&rebuild->pager->suspects, list);

    for (uint32_t i = 0; i < n; i++)
        suspect_copy(rebuild, list[i].extent, list[i].copy, list[i].word);
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

void fill_start(struct rebuild *rebuild, const struct fill_job *job)
{
    struct pool *pool = &rebuild->pager->pool;

    copy_put(&pool->extents[job->extent], job->copy, job->target);
    rebuild->job = *job;
    rebuild->job_word = copy_word(&pool->extents[job->extent], job->copy);
    rebuild->filling = true;
    rebuild->failed = false;
    rebuild->n_todo = pool->extent_pages;
    rebuild->next = 0;
    memset(rebuild->todo, 0xff, (pool->extent_pages + WORD_BITS - 1) / WORD_BITS * sizeof(*rebuild->todo));
    FAULT_POINT(rebuild_begun);
}

/* Whether the copy is still FILLING, as it was when the fill began. If not, it has missed a write. */
static bool fill_stands(const struct rebuild *rebuild)
{

    return copy_word(&rebuild->pager->pool.extents[rebuild->job.extent], rebuild->job.copy) == rebuild->job_word;
}

static void fill_end(struct rebuild *rebuild)
{
    struct extent *extent = &rebuild->pager->pool.extents[rebuild->job.extent];

    rebuild->filling = false;
    rebuild->asked = true;
    if (rebuild->failed || !fill_stands(rebuild)) {
        rebuild_copy_missed(rebuild, rebuild->job.extent, rebuild->job.copy, rebuild->job_word);
        rebuild->pause_ns = clock_ns() + PAUSE_NS;
        return;
    }
    FAULT_POINT(rebuild_filled);
    copy_complete(extent, rebuild->job.copy);
    FAULT_POINT(rebuild_current);
    if (rebuild->job.drop != NOT_A_COPY && copy_load(extent, rebuild->job.drop).state == COPY_CURRENT)
        copy_drop(&rebuild->pager->pool, rebuild->job.extent, rebuild->job.drop);
}

/* Ends the chunk and clears PAGE_F_IO of its pages. */
static void chunk_end(struct rebuild *rebuild, struct chunk *chunk, bool failed)
{

    pager_mark_io(rebuild->pager, chunk->page, chunk->n_pages, false);
    chunk->state = CHUNK_IDLE;
    rebuild->n_flying--;
    rebuild->failed = rebuild->failed || failed;
}

static void chunk_read(struct rebuild *rebuild, struct chunk *chunk)
{
    struct pool *pool = &rebuild->pager->pool;

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
    chunk_end(rebuild, chunk, true);
}

/*
 * Whether a page that was read has the wrong checksum. The checksum does not change while PAGE_F_IO is set, but other
 * threads change the flags beside it, so both are read with the lock.
 */
static bool page_wrong(const struct rebuild *rebuild, const struct chunk *chunk, uint32_t i)
{
    struct pager *pager = rebuild->pager;

    pager_lock(pager);
    struct page page = pager->table.pages[chunk->page + i];

    pager_unlock(pager);
    return (page.flags & PAGE_F_SUM) && checksum_page(chunk->buf + (size_t)i * PAGE_BYTES) != page.checksum;
}

/* Counts, and logs, the chunk's pages that have the wrong checksum. */
static uint32_t chunk_wrong(struct rebuild *rebuild, const struct chunk *chunk)
{
    uint32_t n_wrong = 0;

    for (uint32_t i = 0; i < chunk->n_pages; i++) {
        if (!page_wrong(rebuild, chunk, i))
            continue;
        n_wrong++;
        donor_count_checksum_error(chunk->source.donor);
        log_error("donor %s: the page at offset %llu is not what was written there (checksum)",
                  chunk->source.donor->uri, (unsigned long long)chunk->source.offset + (uint64_t)i * PAGE_BYTES);
    }
    return n_wrong;
}

/* Puts the good pages of a chunk back on the list of pages to fill, and leaves the wrong ones out. */
static void chunk_leave_out_wrong(struct rebuild *rebuild, struct chunk *chunk)
{
    uint32_t first = chunk->page % rebuild->pager->pool.extent_pages;

    for (uint32_t i = 0; i < chunk->n_pages; i++)
        if (!page_wrong(rebuild, chunk, i)) {
            rebuild->todo[(first + i) / WORD_BITS] |= 1ull << ((first + i) % WORD_BITS);
            rebuild->n_todo++;
        }
    chunk_end(rebuild, chunk, false);
}

static void chunk_write(struct rebuild *rebuild, struct chunk *chunk)
{
    struct place place = pool_place_of(&rebuild->pager->pool, chunk->page, rebuild->job.copy, rebuild->job_word);

    chunk->state = CHUNK_WRITING;
    if (!fill_stands(rebuild) || channel_write(&place.donor->channels[CHANNEL_WRITEBACK], &chunk->request, chunk->buf,
                                               chunk->n_pages * PAGE_BYTES, place.offset) < 0)
        chunk_end(rebuild, chunk, true);
}

static void chunk_arrived(struct rebuild *rebuild, struct chunk *chunk)
{
    struct donor *donor = chunk->source.donor;
    bool moved =
        copy_word(&rebuild->pager->pool.extents[rebuild->job.extent], chunk->source.copy) != chunk->source.word;

    if (chunk->request.error || moved) {
        COUNT(donor->counters.errors, !moved);
        chunk->tried_mask |= 1u << chunk->source.copy;
        chunk_read(rebuild, chunk);
        return;
    }
    FAULT_POINT(rebuild_read);
    COUNT(donor->counters.read_bytes, chunk->request.bytes);
    if (chunk_wrong(rebuild, chunk) == 0) {
        chunk_write(rebuild, chunk);
    } else if (chunk->attempts < ATTEMPTS) {
        suspect_copy(rebuild, rebuild->job.extent, chunk->source.copy, chunk->source.word);
        chunk_read(rebuild, chunk);
    } else {
        chunk_leave_out_wrong(rebuild, chunk);
    }
}

static void chunk_written(struct rebuild *rebuild, struct chunk *chunk)
{
    struct pool *pool = &rebuild->pager->pool;
    struct donor *donor = &pool->donors[rebuild->job.target.donor];

    if (chunk->request.error) {
        donor_note_write(donor, chunk->request.error, clock_ns());
        chunk_end(rebuild, chunk, true);
        return;
    }
    FAULT_POINT(rebuild_written);
    COUNT(donor->counters.writes, 1);
    COUNT(donor->counters.written_bytes, chunk->request.bytes);
    COUNT(rebuild->pager->rebuild_status.done_bytes, chunk->request.bytes);
    chunk_end(rebuild, chunk, false);
}

static void chunk_done(struct request *request)
{
    struct chunk *chunk = (struct chunk *)request;

    if (chunk->state == CHUNK_READING)
        chunk_arrived(request->owner, chunk);
    else
        chunk_written(request->owner, chunk);
}

/* What a page needs: nothing; another visit later, as its own write or a discard is under way; or to be filled. */
enum page_need { NEED_NOTHING, NEED_LATER, NEED_COPY };

static enum page_need page_need(const struct page_table *table, uint32_t page)
{
    const struct page *p = &table->pages[page];

    /* When the donors are told to forget a page that is discarded, no fill of it may be under way. */
    if ((p->flags & PAGE_F_IO) || p->state == PAGE_DISCARDING)
        return NEED_LATER;
    if (!page_on_donor(table, page) || (p->flags & PAGE_F_DIRTY) || p->state == PAGE_POISONED)
        return NEED_NOTHING;
    return NEED_COPY;
}

/* Takes the next run of pages to fill. Returns its length; 0 if this turn found none. */
static uint32_t take_run(struct rebuild *rebuild, uint32_t *first)
{
    struct page_table *table = &rebuild->pager->table;
    uint32_t n_pages = rebuild->pager->pool.extent_pages, base = rebuild->job.extent * n_pages, n = 0;

    pager_lock(rebuild->pager);
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
    pager_unlock(rebuild->pager);
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

/* Begins with one run. Returns whether another step may follow at once. */
static bool fill_step(struct rebuild *rebuild)
{
    struct chunk *chunk = idle_chunk(rebuild);
    uint64_t rate = atomic_load(&rebuild->pager->rebuild_status.rate);
    uint32_t first = 0;

    if (rate != rebuild->rate) {
        rebuild->rate = rate;
        rebuild->next_ns = 0; /* what a slower rate made to wait for hours begins at once */
    }
    if (!chunk || rebuild->n_todo == 0 || (rate && clock_ns() < rebuild->next_ns))
        return false;
    uint32_t n = take_run(rebuild, &first);

    if (n == 0) {
        bool end = rebuild->next >= rebuild->pager->pool.extent_pages;

        if (end)
            rebuild->next = 0; /* the pages that were left for later are visited again */
        return !end;
    }
    FAULT_POINT(rebuild_taken);
    rate_spend(rebuild, rate, (uint64_t)n * PAGE_BYTES);
    chunk->page = first;
    chunk->n_pages = n;
    chunk->attempts = chunk->tried_mask = 0;
    rebuild->n_flying++;
    chunk_read(rebuild, chunk);
    return !rebuild->failed;
}

int fill_turn(struct rebuild *rebuild)
{

    rebuild->failed = rebuild->failed || !fill_stands(rebuild);
    while (!rebuild->failed && fill_step(rebuild))
        continue;
    if (rebuild->n_flying == 0 && (rebuild->failed || rebuild->n_todo == 0)) {
        fill_end(rebuild);
        return 0;
    }
    return rebuild->n_flying == CHUNKS ? -1 : 1;
}

int fill_init(struct rebuild *rebuild)
{
    uint32_t n_words = (rebuild->pager->pool.extent_pages + WORD_BITS - 1) / WORD_BITS;
    void *buffers = mmap(NULL, CHUNKS * BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (buffers == MAP_FAILED)
        return -errno;
    page_memory_hide(buffers, CHUNKS * BUFFER_BYTES);
    rebuild->buffers = buffers;
    rebuild->todo = calloc(n_words, sizeof(*rebuild->todo));
    for (uint32_t i = 0; i < CHUNKS; i++) {
        rebuild->chunks[i].request = (struct request){.done = chunk_done, .owner = rebuild};
        rebuild->chunks[i].buf = rebuild->buffers + i * BUFFER_BYTES;
    }
    return rebuild->todo ? 0 : -ENOMEM;
}

void fill_destroy(struct rebuild *rebuild)
{
    if (rebuild->buffers)
        munmap(rebuild->buffers, CHUNKS * BUFFER_BYTES);
    free(rebuild->todo);
}
