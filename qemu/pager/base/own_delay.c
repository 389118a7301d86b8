/* SPDX-License-Identifier: MIT */
#include "base/own_delay.h"

#include "base/clock.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define MARKS 16u

struct mark {
    uint64_t at_ns, delay_ns;
};

/* Each thread has its own. */
static _Thread_local struct {
    int fd; /* of schedstat, plus one; 0: not opened yet */
    struct mark marks[MARKS];
    uint32_t n; /* marks so far; the last MARKS of them are kept */
} own;

/* Returns for how long this thread has waited for a processor since it began, in ns; 0 if the kernel does not say. */
static uint64_t read_delay(void)
{
    char text[96];
    uint64_t run_ns, delay_ns;

    if (own.fd == 0)
        own.fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC) + 1;
    ssize_t n = own.fd > 0 ? pread(own.fd - 1, text, sizeof(text) - 1, 0) : 0;

    text[n > 0 ? n : 0] = '\0';
    return sscanf(text, "%" SCNu64 " %" SCNu64, &run_ns, &delay_ns) == 2 ? delay_ns : 0;
}

void own_delay_mark(void)
{
    own.marks[own.n++ % MARKS] = (struct mark){.at_ns = clock_ns(), .delay_ns = read_delay()};
}

uint64_t own_delay_since(uint64_t then_ns)
{
    uint32_t n = own.n < MARKS ? own.n : MARKS;
    const struct mark *best = NULL, *oldest = NULL;

    for (uint32_t i = 0; i < n; i++) {
        const struct mark *mark = &own.marks[i];

        oldest = !oldest || mark->at_ns < oldest->at_ns ? mark : oldest;
        if (mark->at_ns <= then_ns && (!best || mark->at_ns > best->at_ns))
            best = mark;
    }
    best = best ? best : oldest;
    uint64_t now_delay_ns = best ? read_delay() : 0;

    return best && now_delay_ns > best->delay_ns ? now_delay_ns - best->delay_ns : 0;
}
