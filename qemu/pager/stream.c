/* SPDX-License-Identifier: MIT */
/*
 * Sequential access: which pages to bring in before they are asked for.
 *
 * A stream is a run of faults at ascending addresses. Its window starts small and doubles with each window that is
 * used, up to --readahead. What is read ahead lands inactive (in the memfd, mapped nowhere), so a useless page is
 * the first to go and costs no zap; the first touch of a window is a MINOR fault, which maps what has arrived of it
 * and asks for the next.
 */
#include "fault.h"

#define WINDOW_START 8u
/* How far ahead of the reader data is asked for, in windows. */
#define WINDOWS_AHEAD 3u
/* A fault this little beyond the expected page still belongs to the stream (another thread was faster). */
#define SLACK 2u

static struct stream *find(struct fault_loop *loop, uint32_t page)
{
    for (uint32_t i = 0; i < STREAMS; i++) {
        struct stream *s = &loop->streams[i];

        if (s->used && page >= s->expected && page <= s->expected + SLACK)
            return s;
    }
    return NULL;
}

static struct stream *replace_oldest(struct fault_loop *loop)
{
    struct stream *oldest = &loop->streams[0];

    for (uint32_t i = 1; i < STREAMS; i++)
        if (loop->streams[i].used < oldest->used)
            oldest = &loop->streams[i];
    return oldest;
}

/* What is read ahead must not age out of a small cache's inactive list (a fifth of it) before the reader comes. */
static uint32_t grow(const struct fault_loop *loop, uint32_t window)
{
    int64_t fits = loop->pager->cache_pages / (5 * (WINDOWS_AHEAD + 1));
    uint32_t max = fits < loop->readahead_pages ? (uint32_t)fits : loop->readahead_pages;
    uint32_t next = window ? window * 2 : WINDOW_START;

    return next < max ? next : max;
}

uint32_t stream_fault(struct fault_loop *loop, uint32_t page, struct stream **stream)
{
    struct stream *s = find(loop, page);

    *stream = NULL;
    if (loop->readahead_pages == 0)
        return 0;
    if (!s) {
        s = replace_oldest(loop);
        *s = (struct stream){.expected = page + 1, .frontier = page + 1, .used = ++loop->tick};
        return 0;
    }
    s->used = ++loop->tick;
    s->window = grow(loop, s->window);
    s->expected = page + 1;
    if (s->frontier < page + 1)
        s->frontier = page + 1;
    *stream = s;
    return s->window;
}

struct stream *stream_hit(struct fault_loop *loop, uint32_t page)
{
    for (uint32_t i = 0; i < STREAMS; i++) {
        struct stream *s = &loop->streams[i];

        if (s->used && page + loop->readahead_pages * (WINDOWS_AHEAD + 1) >= s->frontier && page < s->frontier)
            return s;
    }
    return NULL;
}

void stream_advance(struct fault_loop *loop, struct stream *stream, uint32_t page)
{
    stream->used = ++loop->tick;
    stream->expected = page;
    if (stream->frontier < page)
        stream->frontier = page;
    stream->window = grow(loop, stream->window);
    while (stream->frontier < page + stream->window * WINDOWS_AHEAD) {
        uint32_t n = fetch_readahead(loop, stream->frontier, stream->window);

        if (n == 0)
            break;
        stream->frontier += n;
    }
}
