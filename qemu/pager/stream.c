/* SPDX-License-Identifier: MIT */
/*
 * Regular access: which pages to bring in before they are asked for.
 *
 * Three of the last faults at equal distances make a stream, whatever else was between them: other streams, other
 * virtual CPUs, random access. (Leap's majority vote over the last steps, ATC'20, wants most faults to be of one
 * stream: see ARCHITECTURE.md for the two beside each other.) A stream's window starts small, doubles with each
 * window that is used, up to --readahead, and halves when pages of it leave unused.
 *
 * What is read ahead lands inactive (in the memfd, mapped nowhere), so a useless page is among the first to go and
 * costs no zap; the first touch of a window is a MINOR fault, which maps what has arrived of it and asks for the
 * next.
 */
#include "fault.h"

#include <stdlib.h>

#define WINDOW_START 8u
/* While there are faults at random, too: they wait for no more than this to be put in place. */
#define WINDOW_BESIDE_RANDOM 16u
/* How far ahead of the reader data is asked for, in windows; one more each time that the stream was right. */
#define WINDOWS_AHEAD 3u
/* The longest stride: 2 MiB. */
#define STRIDE_MAX 512
/* So many steps may be left out (another thread was faster) before it is another stream. */
#define SLACK 2
/* A stream that jumps asks for its pages one by one: no more at a time than this. */
#define JUMPS_MAX 8u

static int64_t distance(uint32_t from, uint32_t to)
{
    return (int64_t)to - (int64_t)from;
}

static struct stream *find(struct fault_loop *loop, uint32_t page)
{
    for (uint32_t i = 0; i < STREAMS; i++) {
        struct stream *s = &loop->streams[i];
        int64_t d = distance(s->last, page);

        if (s->used && d % s->stride == 0 && d / s->stride >= 1 && d / s->stride <= SLACK + 1)
            return s;
    }
    return NULL;
}

/* The absent page that was asked for `age` faults ago. */
static uint32_t recent(const struct fault_loop *loop, uint32_t age)
{
    return loop->recent[(loop->n_faults - 1 - age) % RECENT_FAULTS];
}

/* The distance between two of the last faults, and from the second to this one; the shortest there is, or 0. */
static int32_t find_stride(const struct fault_loop *loop, uint32_t page)
{
    int64_t best = 0;

    for (uint32_t i = 0; i < RECENT_FAULTS; i++) {
        int64_t d = distance(recent(loop, i), page);

        if (d == 0 || llabs(d) > STRIDE_MAX || (best && llabs(d) >= llabs(best)))
            continue;
        for (uint32_t j = i + 1; j < RECENT_FAULTS; j++)
            if (recent(loop, j) == page - 2 * d) {
                best = d;
                break;
            }
    }
    return (int32_t)best;
}

static struct stream *replace_oldest(struct fault_loop *loop)
{
    struct stream *oldest = &loop->streams[0];

    for (uint32_t i = 1; i < STREAMS; i++)
        if (loop->streams[i].used < oldest->used)
            oldest = &loop->streams[i];
    return oldest;
}

/* Whether the page is among the n_pages steps before the stream's frontier: asked for, and perhaps not used so far.
 */
static bool is_ahead(const struct stream *s, uint32_t page, uint32_t n_pages)
{
    int64_t behind = (s->frontier - page) * (s->stride > 0 ? 1 : -1);

    return s->used && behind > 0 && behind <= (int64_t)n_pages * abs(s->stride);
}

static uint32_t reach(const struct fault_loop *loop)
{
    return loop->readahead_pages * (WINDOWS_AHEAD + 1);
}

/* What the evict thread has dropped unused: the streams that had asked for it ask for less. */
static void heed_waste(struct fault_loop *loop)
{
    struct pager *pager = loop->pager;

    if (pager->n_wasted == loop->n_wasted_seen)
        return;
    loop->n_wasted_seen = pager->n_wasted;
    for (uint32_t i = 0; i < STREAMS; i++) {
        struct stream *s = &loop->streams[i];

        if (is_ahead(s, pager->last_wasted, 2 * reach(loop)) && s->window > WINDOW_START)
            s->window /= 2;
    }
}

/* What is read ahead must not age out of a small cache's inactive list (a quarter of it) before the reader comes. */
static uint32_t grow(const struct fault_loop *loop, const struct stream *s)
{
    int64_t fits = loop->pager->cache_pages / (5 * (WINDOWS_AHEAD + 1));
    uint32_t max = fits < loop->readahead_pages ? (uint32_t)fits : loop->readahead_pages;
    uint32_t next = s->window ? s->window * 2 : WINDOW_START;

    if (abs(s->stride) > 1 && max > JUMPS_MAX)
        max = JUMPS_MAX;
    if (fetch_random_access(loop) && max > WINDOW_BESIDE_RANDOM)
        max = WINDOW_BESIDE_RANDOM;
    return next < max ? next : max;
}

uint32_t stream_fault(struct fault_loop *loop, uint32_t page, struct stream **stream)
{
    *stream = NULL;
    if (loop->readahead_pages == 0)
        return 0;
    struct stream *s = find(loop, page);
    int32_t stride = s ? s->stride : find_stride(loop, page);

    loop->recent[loop->n_faults++ % RECENT_FAULTS] = page;
    if (!s) {
        if (stride == 0)
            return 0;
        s = replace_oldest(loop);
        *s = (struct stream){.stride = stride, .frontier = (int64_t)page + stride};
    }
    heed_waste(loop);
    s->used = ++loop->tick;
    s->last = page;
    if ((s->frontier - page) * s->stride <= 0)
        s->frontier = (int64_t)page + s->stride;
    *stream = s;
    return abs(s->stride) == 1 ? grow(loop, s) : 0;
}

struct stream *stream_hit(struct fault_loop *loop, uint32_t page)
{
    for (uint32_t i = 0; i < STREAMS; i++)
        if (is_ahead(&loop->streams[i], page, reach(loop))) {
            loop->streams[i].n_used++;
            return &loop->streams[i];
        }
    return NULL;
}

static uint32_t windows_ahead(const struct stream *s)
{
    return s->n_used + 1 < WINDOWS_AHEAD ? s->n_used + 1 : WINDOWS_AHEAD;
}

/* Asks for the next pages of the stream; false if that cannot be done now. */
static bool ask(struct fault_loop *loop, struct stream *s)
{
    int64_t first = s->stride == -1 ? s->frontier - s->window + 1 : s->frontier;
    uint32_t n = abs(s->stride) == 1 ? s->window : 1;

    if (first < 0 || first >= loop->pager->table.n_pages)
        return false;
    uint32_t covered = fetch_readahead(loop, (uint32_t)first, n);

    if (covered == 0)
        return false;
    s->frontier += s->stride == 1 ? (int64_t)covered : (int64_t)n * s->stride;
    return true;
}

void stream_advance(struct fault_loop *loop, struct stream *stream, uint32_t page)
{
    heed_waste(loop);
    stream->used = ++loop->tick;
    stream->last = page;
    stream->window = grow(loop, stream);
    while (llabs(stream->frontier - page) <= (int64_t)stream->window * windows_ahead(stream) * abs(stream->stride))
        if (!ask(loop, stream))
            break;
}
