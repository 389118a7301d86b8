/* SPDX-License-Identifier: MIT */
#include "turns.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>

#define TURN_BACKWARDS UINT32_C(0x80000000)
/* Beyond 8 TiB nothing is remembered. */
#define TURN_FIRST_MAX (TURN_BACKWARDS - 2)

static size_t table_bytes(uint32_t n_pages)
{
    return ((size_t)n_pages / TURN_BLOCK_PAGES + 1) * sizeof(uint32_t);
}

int turns_create(struct turns *turns, uint32_t n_pages)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *blocks = mmap(NULL, table_bytes(n_pages), PROT_READ | PROT_WRITE, flags, -1, 0);

    if (blocks == MAP_FAILED)
        return -ENOMEM;
    *turns = (struct turns){.blocks = blocks, .n_pages = n_pages};
    return 0;
}

void turns_destroy(struct turns *turns)
{
    if (turns->blocks)
        munmap(turns->blocks, table_bytes(turns->n_pages));
    turns->blocks = NULL;
}

void turns_learn(struct turns *turns, uint32_t from, uint32_t first, bool backwards)
{
    uint32_t block = from / TURN_BLOCK_PAGES;

    if (block != first / TURN_BLOCK_PAGES && first <= TURN_FIRST_MAX)
        turns->blocks[block] = (first + 1) | (backwards ? TURN_BACKWARDS : 0);
}

bool turns_forget(struct turns *turns, uint32_t from, uint32_t to)
{
    uint32_t block = from / TURN_BLOCK_PAGES, last = to / TURN_BLOCK_PAGES;
    bool any = false;

    for (; block != last; block += last > block ? 1 : -1u) {
        any = any || turns->blocks[block];
        turns->blocks[block] = 0;
    }
    return any;
}

struct turn turns_at(const struct turns *turns, int64_t frontier, int32_t stride)
{
    int64_t before = frontier - stride;
    bool at_end = stride > 0 ? frontier % TURN_BLOCK_PAGES == 0 : before % TURN_BLOCK_PAGES == 0;

    if (!at_end || before < 0 || before >= turns->n_pages)
        return (struct turn){.known = false};
    uint32_t word = turns->blocks[before / TURN_BLOCK_PAGES];

    return (struct turn){
        .known = word != 0, .backwards = word & TURN_BACKWARDS, .first = (word & ~TURN_BACKWARDS) - 1};
}

uint32_t turns_clip(const struct turns *turns, uint32_t page, uint32_t n, bool backwards)
{
    uint32_t left = backwards ? page + 1 : turns->n_pages - page, done = 0;

    n = n < left ? n : left;
    while (done < n) {
        uint32_t at = backwards ? page - done : page + done;
        uint32_t in_block = at % TURN_BLOCK_PAGES;

        done += backwards ? in_block + 1 : TURN_BLOCK_PAGES - in_block;
        if (turns->blocks[at / TURN_BLOCK_PAGES])
            break;
    }
    return done < n ? done : n;
}
