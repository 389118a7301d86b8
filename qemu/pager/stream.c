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
 *
 * Where a stream ends, its reader is expected to turn as he did last time (turns.h): the stream on which he went on
 * is begun for him, and read ahead as if it were the same one.
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
/* So many turns ahead. */
#define TURNS_MAX 16u
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

static void recent_add(struct fault_loop *loop, uint32_t page)
{
    uint32_t place = loop->n_faults++ % RECENT_FAULTS;

    loop->recent[place] = page;
    loop->recent_random_ns[place] = 0;
}

void stream_note_random(struct fault_loop *loop)
{
    loop->random_ns = loop->now_ns;
    loop->recent_random_ns[(loop->n_faults - 1) % RECENT_FAULTS] = loop->now_ns;
}

/* Two faults that looked like random access were the beginning of a stream. */
static void recent_of_stream(struct fault_loop *loop, uint32_t first, int32_t stride)
{
    uint64_t latest_ns = 0;

    for (uint32_t i = 0; i < RECENT_FAULTS; i++) {
        uint64_t *random_ns = &loop->recent_random_ns[i];

        if (loop->recent[i] == first || loop->recent[i] == first + (uint32_t)stride)
            *random_ns = 0;
        latest_ns = *random_ns > latest_ns ? *random_ns : latest_ns;
    }
    loop->random_ns = latest_ns;
}

static struct stream *replace_oldest(struct fault_loop *loop)
{
    struct stream *oldest = &loop->streams[0];

    for (uint32_t i = 1; i < STREAMS; i++)
        if (loop->streams[i].used < oldest->used)
            oldest = &loop->streams[i];
    return oldest;
}

/* The reader is in this stream, at this page. A stream that is new to him is the turn of the one that he was in. */
static void reader_at(struct fault_loop *loop, struct stream *s, uint32_t page)
{
    const struct stream *before = loop->reading;

    if (abs(s->stride) != 1)
        return;
    if (!s->begun) {
        if (before && before != s)
            turns_learn(&loop->turns, before->seen, s->first, s->stride < 0);
        s->begun = true;
    } else if (distance(s->seen, page) * s->stride > 0) {
        bool stopped = turns_at(&loop->turns, s->frontier, s->stride).known;

        if (turns_forget(&loop->turns, s->seen, page) && stopped) {
            /* He turns elsewhere, and most likely soon: not far ahead. */
            s->window = WINDOW_START;
            s->n_used = 0;
        }
    }
    s->seen = page;
    loop->reading = s;
}

/* A stream in place of the oldest one; NULL if that is the one given, or where the reader is. */
static struct stream *begin(struct fault_loop *loop, const struct stream *keep, struct stream as)
{
    struct stream *s = replace_oldest(loop);

    if (keep && (s == keep || s == loop->reading))
        return NULL;
    if (s == loop->reading)
        loop->reading = NULL;
    *s = as;
    return s;
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

    recent_add(loop, page);
    if (!s) {
        if (stride == 0)
            return 0;
        uint32_t first = page - 2 * (uint32_t)stride;

        recent_of_stream(loop, first, stride);
        s = begin(
            loop, NULL,
            (struct stream){.stride = stride, .first = first, .seen = page, .frontier = (int64_t)page + stride});
    }
    reader_at(loop, s, page);
    heed_waste(loop);
    s->used = ++loop->tick;
    s->last = page;
    if ((s->frontier - page) * s->stride <= 0)
        s->frontier = (int64_t)page + s->stride;
    *stream = s;
    return abs(s->stride) == 1 ? grow(loop, s) : 0;
}

/* How far the page is ahead of the stream's reader, in steps; those behind him come last. */
static uint64_t steps_ahead(const struct stream *s, uint32_t page)
{
    int64_t d = distance(s->last, page) * (s->stride > 0 ? 1 : -1);

    return d > 0 ? (uint64_t)d : (uint64_t)UINT32_MAX - (uint64_t)d;
}

struct stream *stream_hit(struct fault_loop *loop, uint32_t page)
{
    struct stream *best = NULL;

    for (uint32_t i = 0; i < STREAMS; i++) {
        struct stream *s = &loop->streams[i];
        int64_t d = distance(s->first, page);

        if (is_ahead(s, page, reach(loop)) && d * s->stride >= 0 && d % s->stride == 0 &&
            (!best || steps_ahead(s, page) < steps_ahead(best, page)))
            best = s;
    }
    if (best) {
        best->n_used++;
        reader_at(loop, best, page);
    }
    return best;
}

/* The stream that the reader is expected to turn to; found, or begun for him. NULL: there is none. */
static struct stream *follow_turn(struct fault_loop *loop, const struct stream *s)
{
    struct turn turn = {.known = false};

    if (abs(s->stride) == 1)
        turn = turns_at(&loop->turns, s->frontier, s->stride);
    if (!turn.known)
        return NULL;
    int32_t stride = turn.backwards ? -1 : 1;

    for (uint32_t i = 0; i < STREAMS; i++) {
        struct stream *next = &loop->streams[i];

        if (next->used && next->stride == stride && next->first == turn.first) {
            next->used = ++loop->tick;
            return next;
        }
    }
    /* As if the reader had been a step before it; before page 0 there is none. */
    uint32_t last = turn.first == 0 && stride == 1 ? 0 : turn.first - (uint32_t)stride;

    return begin(loop, s,
                 (struct stream){.stride = stride,
                                 .first = turn.first,
                                 .seen = turn.first,
                                 .last = last,
                                 .frontier = turn.first,
                                 .window = s->window,
                                 .n_used = s->n_used,
                                 .used = ++loop->tick});
}

static uint32_t windows_ahead(const struct stream *s)
{
    return s->n_used + 1 < WINDOWS_AHEAD ? s->n_used + 1 : WINDOWS_AHEAD;
}

/* Asks for the next pages of the stream; false if that cannot be done now. */
static bool ask(struct fault_loop *loop, struct stream *s)
{
    bool in_order = abs(s->stride) == 1;

    if (s->frontier < 0 || s->frontier >= loop->pager->table.n_pages)
        return false;
    uint32_t n = in_order ? turns_clip(&loop->turns, (uint32_t)s->frontier, s->window, s->stride < 0) : 1;
    uint32_t covered = fetch_readahead(loop, (uint32_t)s->frontier, n, s->stride == -1);

    if (covered == 0)
        return false;
    s->frontier += (int64_t)covered * s->stride;
    return true;
}

void stream_advance(struct fault_loop *loop, struct stream *stream, uint32_t page)
{
    heed_waste(loop);
    stream->used = ++loop->tick;
    stream->last = page;
    stream->window = grow(loop, stream);
    int64_t goal = (int64_t)stream->window * windows_ahead(stream) * abs(stream->stride);
    int64_t ahead = llabs(stream->frontier - page);
    struct stream *s = stream;

    for (uint32_t turns = 0; ahead <= goal && turns < TURNS_MAX;) {
        struct stream *next = follow_turn(loop, s);

        if (next == stream)
            break; /* round in a circle */
        if (next) {
            s = next;
            s->window = stream->window;
            ahead += llabs(s->frontier - s->first);
            turns++;
            continue;
        }
        int64_t before = s->frontier;

        if (!ask(loop, s))
            break;
        ahead += llabs(s->frontier - before);
    }
}
