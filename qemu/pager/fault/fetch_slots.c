/* SPDX-License-Identifier: MIT */
#include "fault/fetch_slots.h"

#include "base/clock.h"
#include "page_memory.h"

#include <errno.h>
#include <sys/mman.h>

static uint8_t *slot_buffers(size_t bytes)
{
    void *buffers = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (buffers == MAP_FAILED)
        return NULL;
    page_memory_hide(buffers, bytes);
    return buffers;
}

static size_t buffers_bytes(const struct fault_loop *loop)
{
    return (size_t)DEMAND_SLOTS * PAGE_BYTES + (size_t)READAHEAD_SLOTS * loop->readahead_pages * PAGE_BYTES;
}

int fetch_slots_create(struct fault_loop *loop, void (*done)(struct request *request))
{
    const struct request request = {.done = done, .owner = loop};
    uint8_t *buf = slot_buffers(buffers_bytes(loop));

    if (!buf)
        return -ENOMEM;
    loop->buffers = buf;
    for (uint32_t i = 0; i < DEMAND_SLOTS; i++, buf += PAGE_BYTES) {
        loop->demand[i] = (struct fetch){.request = request, .demand = true, .buf = buf, .next = loop->free_demand};
        loop->free_demand = &loop->demand[i];
    }
    for (uint32_t i = 0; i < READAHEAD_SLOTS && loop->readahead_pages; i++) {
        loop->readahead[i] = (struct fetch){.request = request, .buf = buf, .next = loop->free_readahead};
        loop->free_readahead = &loop->readahead[i];
        buf += (size_t)loop->readahead_pages * PAGE_BYTES;
    }
    return 0;
}

void fetch_slots_destroy(struct fault_loop *loop)
{
    if (loop->buffers)
        munmap(loop->buffers, buffers_bytes(loop));
}

uint32_t fetch_demand_max(const struct fault_loop *loop, uint32_t page)
{
    return pool_reaches(&loop->pager->pool, page, CHANNEL_DEMAND) ? DEMAND_MAX : DEMAND_MAX / 2;
}

struct fetch *fetch_slot(struct fault_loop *loop, bool demand)
{
    struct fetch **list = demand ? &loop->free_demand : &loop->free_readahead;
    struct fetch *fetch = *list;

    if (!fetch)
        return NULL;
    *list = fetch->next;
    fetch->tried = fetch->denied = fetch->older = fetch->attempts = 0;
    fetch->twin = NULL;
    fetch->hedge_ns = 0;
    fetch->is_hedge = fetch->late = fetch->overtaken = fetch->of_stream = false;
    return fetch;
}

void fetch_slot_give(struct fault_loop *loop, struct fetch *fetch)
{
    struct fetch **list = fetch->demand ? &loop->free_demand : &loop->free_readahead;

    fetch->next = *list;
    *list = fetch;
}

void fetch_over(struct fault_loop *loop, struct fetch *fetch)
{
    if (fetch->demand)
        loop->n_demand--;
    else
        loop->n_readahead--;
    fetch_slot_give(loop, fetch);
}

void fetch_retry_later(struct fault_loop *loop, struct fetch *fetch, uint64_t after_ns)
{
    fetch->retry_ns = clock_ns() + after_ns;
    fetch->next = loop->retry;
    loop->retry = fetch;
}
