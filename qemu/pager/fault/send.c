/* SPDX-License-Identifier: MIT */
#include "fault/send.h"

#include "donor/channel.h"
#include "fault/hedge.h"

#include <errno.h>

/* Asks the copy at fetch->place. */
static int ask(struct fault_loop *loop, struct fetch *fetch)
{
    struct channel *channel = &fetch->place.donor->channels[fetch->demand ? CHANNEL_DEMAND : CHANNEL_READAHEAD];
    int rc = channel_read(channel, &fetch->request, fetch->buf, fetch->n_pages * PAGE_BYTES, fetch->place.offset);

    if (rc == 0)
        hedge_arm(loop, fetch);
    return rc;
}

static bool has_checksum(struct pager *pager, uint32_t page)
{
    pager_lock(pager);
    bool has = pager->table.pages[page].flags & PAGE_F_SUM;

    pager_unlock(pager);
    return has;
}

bool fetch_pick_older(const struct fault_loop *loop, const struct fetch *fetch, struct place *place)
{
    const struct pool *pool = &loop->pager->pool;
    const struct extent *extent = &pool->extents[fetch->page / pool->extent_pages];
    bool found = false;

    if (!fetch->demand || !has_checksum(loop->pager, fetch->page))
        return false;
    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        uint64_t word = copy_word(extent, i);
        struct copy copy = copy_of_word(word);

        if ((copy.state != COPY_STALE && copy.state != COPY_FILLING) || (fetch->older >> i & 1) ||
            donor_gone(&pool->donors[copy.donor]))
            continue;
        /* A copy whose donor is connected is preferred. */
        if (found && pool->donors[copy.donor].channels[CHANNEL_DEMAND].state != CHANNEL_UP)
            continue;
        *place = pool_place_of(pool, fetch->page, i, word);
        found = true;
    }
    return found;
}

int fetch_send(struct fault_loop *loop, struct fetch *fetch)
{
    int rc = hedge_choose(loop, fetch, &fetch->place) ? ask(loop, fetch) : -ENOENT;

    if (rc < 0 && fetch_pick_older(loop, fetch, &fetch->place))
        rc = ask(loop, fetch);
    return rc;
}
