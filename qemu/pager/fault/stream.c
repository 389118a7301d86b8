/* SPDX-License-Identifier: MIT */
#include "fault/stream.h"

#include "base/clock.h"
#include "page/pages.h"
#include "page/reclaim_policy.h"

#include <stdlib.h>

#define WINDOW_START 8u
/* The largest window while there are faults at random, too, because these wait while a window is installed. */
#define WINDOW_BESIDE_RANDOM 16u
/* How many windows ahead of the reader pages are asked for at most: one more each time that the stream was right. */
#define WINDOWS_AHEAD 3u
/* The longest stride: 2 MiB. */
#define STRIDE_MAX 512
/*
 * How many steps a reader may leave out and still be in the stream: another thread may have touched the pages first.
 */
#define SLACK 2
/* How many turns readahead follows at most. */
#define SUCCESSORS_MAX 16u
/* How long a fault that belongs to no stream counts as recent. */
#define RANDOM_LATELY_NS 1000000u
/* The largest window of a stream with a stride of more than one page, which asks for its pages one by one. */
#define JUMPS_MAX 8u

static int64_t distance(uint32_t from, uint32_t to)
{
    return (int64_t)to - (int64_t)from;
}

/* Returns the stream whose reader is expected at this page, or NULL. */
static struct stream *find(struct streams *streams, uint32_t page)
{
    for (uint32_t i = 0; i < STREAMS; i++) {
        struct stream *s = &streams->list[i];
        int64_t d = distance(s->last, page);

        if (s->used && d % s->stride == 0 && d / s->stride >= 1 && d / s->stride <= SLACK + 1)
            return s;
    }
    return NULL;
}

/* Returns the page of the fault on an absent page that was `age` such faults ago. */
static uint32_t recent(const struct streams *streams, uint32_t age)
{
    return streams->recent[(streams->n_faults - 1 - age) % RECENT_FAULTS];
}

/*
 * Returns the shortest distance that lies both between two of the last faults and between the second of them and this
 * page; 0 if there is none.
 */
static int32_t find_stride(const struct streams *streams, uint32_t page)
{
    int64_t best = 0;

    for (uint32_t i = 0; i < RECENT_FAULTS; i++) {
        int64_t d = distance(recent(streams, i), page);

        if (d == 0 || llabs(d) > STRIDE_MAX || (best && llabs(d) >= llabs(best)))
            continue;
        for (uint32_t j = i + 1; j < RECENT_FAULTS; j++)
            if (recent(streams, j) == page - 2 * d) {
                best = d;
                break;
            }
    }
    return (int32_t)best;
}

static void recent_add(struct streams *streams, uint32_t page)
{
    uint32_t place = streams->n_faults++ % RECENT_FAULTS;

    streams->recent[place] = page;
    streams->recent_random_ns[place] = 0;
}

void stream_note_random(struct streams *streams, uint64_t now_ns)
{
    streams->random_ns = now_ns;
    streams->recent_random_ns[(streams->n_faults - 1) % RECENT_FAULTS] = now_ns;
}

/* Takes two faults off the faults at random, because they have turned out to be the beginning of a stream. */
static void recent_of_stream(struct streams *streams, uint32_t first, int32_t stride)
{
    uint64_t latest_ns = 0;

    for (uint32_t i = 0; i < RECENT_FAULTS; i++) {
        uint64_t *random_ns = &streams->recent_random_ns[i];

        if (streams->recent[i] == first || streams->recent[i] == first + (uint32_t)stride)
            *random_ns = 0;
        latest_ns = *random_ns > latest_ns ? *random_ns : latest_ns;
    }
    streams->random_ns = latest_ns;
}

static struct stream *replace_oldest(struct streams *streams)
{
    struct stream *oldest = &streams->list[0];

    for (uint32_t i = 1; i < STREAMS; i++)
        if (streams->list[i].used < oldest->used)
            oldest = &streams->list[i];
    return oldest;
}

/*
 * Notes that the reader is at this page of this stream. If it was in another stream before, it has turned from there
 * to here, which the successor table learns.
 */
static void reader_at(struct streams *streams, struct stream *s, uint32_t page)
{
    const struct stream *before = streams->reading;

    if (abs(s->stride) != 1)
        return;
    if (!s->begun) {
        if (before && before != s)
            successors_learn(&streams->successors, before->seen, s->first, s->stride < 0);
        s->begun = true;
    } else if (distance(s->seen, page) * s->stride > 0) {
        bool stopped = successors_at(&streams->successors, s->frontier, s->stride).known;

        if (successors_forget(&streams->successors, s->seen, page) && stopped) {
            /*
             * The reader did not turn where it was expected to. Most likely it turns soon, so readahead starts small.
             */
            s->window = WINDOW_START;
            s->n_used = 0;
        }
    }
    s->seen = page;
    streams->reading = s;
}

/*
 * Begins a stream in place of the oldest one. If `keep` is not NULL, returns NULL if the oldest is `keep` or the
 * reader's stream.
 */
static struct stream *begin(struct streams *streams, const struct stream *keep, struct stream as)
{
    struct stream *s = replace_oldest(streams);

    if (keep && (s == keep || s == streams->reading))
        return NULL;
    if (s == streams->reading)
        streams->reading = NULL;
    *s = as;
    return s;
}

/*
 * Whether the page is among the n_pages steps before the stream's frontier, which were asked for and may not be used
 * yet.
 */
static bool is_ahead(const struct stream *s, uint32_t page, uint32_t n_pages)
{
    int64_t behind = (s->frontier - page) * (s->stride > 0 ? 1 : -1);

    return s->used && behind > 0 && behind <= (int64_t)n_pages * abs(s->stride);
}

static uint32_t reach(const struct streams *streams)
{
    return streams->readahead_pages * (WINDOWS_AHEAD + 1);
}

/* If pages were dropped unused, makes the windows of the streams smaller that had asked for them. */
static void heed_waste(struct streams *streams, const struct stream_cache *cache)
{
    if (cache->n_wasted == streams->n_wasted_seen)
        return;
    streams->n_wasted_seen = cache->n_wasted;
    for (uint32_t i = 0; i < STREAMS; i++) {
        struct stream *s = &streams->list[i];

        if (is_ahead(s, cache->last_wasted, 2 * reach(streams)) && s->window > WINDOW_START)
            s->window /= 2;
    }
}

/*
 * Returns the next window. Pages that are read ahead must not leave a small cache's inactive list before the reader
 * comes, so that all windows together are four fifths of that list at most.
 */
static uint32_t grow(const struct streams *streams, const struct stream_cache *cache, const struct stream *s)
{
    int64_t fits = cache->cache_pages / RECLAIM_INACTIVE_SHARE * 4 / 5 / (WINDOWS_AHEAD + 1);
    uint32_t max = fits < streams->readahead_pages ? (uint32_t)fits : streams->readahead_pages;
    uint32_t next = s->window ? s->window * 2 : WINDOW_START;

    if (abs(s->stride) > 1 && max > JUMPS_MAX)
        max = JUMPS_MAX;
    if (stream_random_access(streams) && max > WINDOW_BESIDE_RANDOM)
        max = WINDOW_BESIDE_RANDOM;
    return next < max ? next : max;
}

uint32_t stream_fault(struct streams *streams, const struct stream_cache *cache, uint32_t page,
                      struct stream **stream)
{
    *stream = NULL;
    if (streams->readahead_pages == 0)
        return 0;
    struct stream *s = find(streams, page);
    int32_t stride = s ? s->stride : find_stride(streams, page);

    recent_add(streams, page);
    if (!s) {
        if (stride == 0)
            return 0;
        uint32_t first = page - 2 * (uint32_t)stride;

        recent_of_stream(streams, first, stride);
        s = begin(
            streams, NULL,
            (struct stream){.stride = stride, .first = first, .seen = page, .frontier = (int64_t)page + stride});
    }
    reader_at(streams, s, page);
    heed_waste(streams, cache);
    s->used = ++streams->tick;
    s->last = page;
    if ((s->frontier - page) * s->stride <= 0)
        s->frontier = (int64_t)page + s->stride;
    *stream = s;
    return abs(s->stride) == 1 ? grow(streams, cache, s) : 0;
}

/* Returns how many pages ahead of the stream's reader a page is; pages behind the reader count as the furthest. */
static uint64_t steps_ahead(const struct stream *s, uint32_t page)
{
    int64_t d = distance(s->last, page) * (s->stride > 0 ? 1 : -1);

    return d > 0 ? (uint64_t)d : (uint64_t)UINT32_MAX - (uint64_t)d;
}

struct stream *stream_hit(struct streams *streams, uint32_t page)
{
    struct stream *best = NULL;

    for (uint32_t i = 0; i < STREAMS; i++) {
        struct stream *s = &streams->list[i];
        int64_t d = distance(s->first, page);

        if (is_ahead(s, page, reach(streams)) && d * s->stride >= 0 && d % s->stride == 0 &&
            (!best || steps_ahead(s, page) < steps_ahead(best, page)))
            best = s;
    }
    if (best) {
        best->n_used++;
        reader_at(streams, best, page);
    }
    return best;
}

/*
 * Returns the stream to which the reader is expected to turn; it is found, or begun for the reader. NULL: there is
 * none.
 */
static struct stream *follow_successor(struct streams *streams, const struct stream *s)
{
    struct successor successor = {.known = false};

    if (abs(s->stride) == 1)
        successor = successors_at(&streams->successors, s->frontier, s->stride);
    if (!successor.known)
        return NULL;
    int32_t stride = successor.backwards ? -1 : 1;

    for (uint32_t i = 0; i < STREAMS; i++) {
        struct stream *next = &streams->list[i];

        if (next->used && next->stride == stride && next->first == successor.first) {
            next->used = ++streams->tick;
            return next;
        }
    }
    /* `last` is one step before the first page, as if the reader had come from there; before page 0 there is none. */
    uint32_t last = successor.first == 0 && stride == 1 ? 0 : successor.first - (uint32_t)stride;

    return begin(streams, s,
                 (struct stream){.stride = stride,
                                 .first = successor.first,
                                 .seen = successor.first,
                                 .last = last,
                                 .frontier = successor.first,
                                 .window = s->window,
                                 .n_used = s->n_used,
                                 .used = ++streams->tick});
}

static uint32_t windows_ahead(const struct stream *s)
{
    return s->n_used + 1 < WINDOWS_AHEAD ? s->n_used + 1 : WINDOWS_AHEAD;
}

struct stream_walk stream_advance(struct streams *streams, const struct stream_cache *cache, struct stream *stream,
                                  uint32_t page)
{
    heed_waste(streams, cache);
    stream->used = ++streams->tick;
    stream->last = page;
    stream->window = grow(streams, cache, stream);
    return (struct stream_walk){
        .stream = stream,
        .at = stream,
        .goal = (int64_t)stream->window * windows_ahead(stream) * abs(stream->stride),
        .ahead = llabs(stream->frontier - page),
    };
}

/*
 * Has the walk go on in the streams to which the reader is expected to turn. Returns false if that leads back to the
 * stream in which the walk began.
 */
static bool follow_successors(struct streams *streams, struct stream_walk *walk)
{
    while (walk->ahead <= walk->goal && walk->n_followed < SUCCESSORS_MAX) {
        struct stream *next = follow_successor(streams, walk->at);

        if (!next)
            return true;
        if (next == walk->stream)
            return false;
        walk->at = next;
        next->window = walk->stream->window;
        walk->ahead += llabs(next->frontier - next->first);
        walk->n_followed++;
    }
    return true;
}

bool stream_wants(struct streams *streams, struct stream_walk *walk, struct stream_wish *wish)
{
    if (!follow_successors(streams, walk) || walk->ahead > walk->goal || walk->n_followed >= SUCCESSORS_MAX)
        return false;
    const struct stream *s = walk->at;
    bool in_order = abs(s->stride) == 1;

    if (s->frontier < 0 || s->frontier >= streams->n_pages)
        return false;
    *wish = (struct stream_wish){
        .page = (uint32_t)s->frontier,
        .n_pages =
            in_order ? successors_clip(&streams->successors, (uint32_t)s->frontier, s->window, s->stride < 0) : 1,
        .backwards = s->stride == -1,
    };
    return true;
}

void stream_covered(struct stream_walk *walk, uint32_t n_pages)
{
    int64_t distance_pages = (int64_t)n_pages * walk->at->stride;

    walk->at->frontier += distance_pages;
    walk->ahead += llabs(distance_pages);
}

bool stream_random_access(const struct streams *streams)
{
    return clock_ns() - streams->random_ns < RANDOM_LATELY_NS;
}

int streams_create(struct streams *streams, uint32_t n_pages, uint32_t readahead_pages)
{
    streams->n_pages = n_pages;
    streams->readahead_pages = readahead_pages;
    for (uint32_t i = 0; i < RECENT_FAULTS; i++)
        streams->recent[i] = PAGE_NONE;
    return successors_create(&streams->successors, n_pages);
}

void streams_destroy(struct streams *streams)
{
    successors_destroy(&streams->successors);
}
