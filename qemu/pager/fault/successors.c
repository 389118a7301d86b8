/* SPDX-License-Identifier: MIT */
#include "fault/successors.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

#define SUCCESSOR_BACKWARDS UINT32_C(0x80000000)
/* Turns to pages beyond 8 TiB are not noted. */
#define SUCCESSOR_FIRST_MAX (SUCCESSOR_BACKWARDS - 2)

static size_t table_bytes(uint32_t n_pages)
{
    return ((size_t)n_pages / SUCCESSOR_BLOCK_PAGES + 1) * sizeof(uint32_t);
}

int successors_create(struct successors *successors, uint32_t n_pages)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *blocks = mmap(NULL, table_bytes(n_pages), PROT_READ | PROT_WRITE, flags, -1, 0);

    if (blocks == MAP_FAILED)
        return -ENOMEM;
    *successors = (struct successors){.blocks = blocks, .n_pages = n_pages};
    return 0;
}

void successors_destroy(struct successors *successors)
{
    if (successors->blocks)
        munmap(successors->blocks, table_bytes(successors->n_pages));
    successors->blocks = NULL;
}

void successors_learn(struct successors *successors, uint32_t from, uint32_t first, bool backwards)
{
    uint32_t block = from / SUCCESSOR_BLOCK_PAGES;

    if (block != first / SUCCESSOR_BLOCK_PAGES && first <= SUCCESSOR_FIRST_MAX)
        successors->blocks[block] = (first + 1) | (backwards ? SUCCESSOR_BACKWARDS : 0);
}

bool successors_forget(struct successors *successors, uint32_t from, uint32_t to)
{
    uint32_t block = from / SUCCESSOR_BLOCK_PAGES, last = to / SUCCESSOR_BLOCK_PAGES;
    bool any = false;

    for (; block != last; block += last > block ? 1 : -1u) {
        any = any || successors->blocks[block];
        successors->blocks[block] = 0;
    }
    return any;
}

struct successor successors_at(const struct successors *successors, int64_t frontier, int32_t stride)
{
    int64_t before = frontier - stride;
    bool at_end = stride > 0 ? frontier % SUCCESSOR_BLOCK_PAGES == 0 : before % SUCCESSOR_BLOCK_PAGES == 0;

    if (!at_end || before < 0 || before >= successors->n_pages)
        return (struct successor){.known = false};
    uint32_t word = successors->blocks[before / SUCCESSOR_BLOCK_PAGES];

    return (struct successor){
        .known = word != 0, .backwards = word & SUCCESSOR_BACKWARDS, .first = (word & ~SUCCESSOR_BACKWARDS) - 1};
}

uint32_t successors_clip(const struct successors *successors, uint32_t page, uint32_t n, bool backwards)
{
    uint32_t left = backwards ? page + 1 : successors->n_pages - page, done = 0;

    n = n < left ? n : left;
    while (done < n) {
        uint32_t at = backwards ? page - done : page + done;
        uint32_t in_block = at % SUCCESSOR_BLOCK_PAGES;

        done += backwards ? in_block + 1 : SUCCESSOR_BLOCK_PAGES - in_block;
        if (successors->blocks[at / SUCCESSOR_BLOCK_PAGES])
            break;
    }
    return done < n ? done : n;
}
