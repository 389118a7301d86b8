/* SPDX-License-Identifier: MIT */
#include "pool/copies.h"

void copy_put(struct extent *extent, uint32_t index, struct copy copy)
{
    uint64_t word;

    copy.turn = (uint8_t)(copy_load(extent, index).turn + 1);
    memcpy(&word, &copy, sizeof(word));
    atomic_store_explicit(&extent->words[index], word, memory_order_seq_cst);
}

static void set_state(struct extent *extent, uint32_t index, enum copy_state state)
{
    struct copy copy = copy_load(extent, index);

    copy.state = (uint8_t)state;
    copy_put(extent, index, copy);
}

void copy_remove(struct extent *extent, uint32_t index)
{
    copy_put(extent, index, (struct copy){.state = COPY_NONE});
}

void copy_complete(struct extent *extent, uint32_t index)
{
    set_state(extent, index, COPY_CURRENT);
}

void copy_trust(struct extent *extent, uint32_t index)
{
    set_state(extent, index, COPY_CURRENT);
}

void copy_outdate(struct extent *extent, uint32_t index)
{
    set_state(extent, index, COPY_STALE);
}

bool copy_missed(struct extent *extent, uint32_t index, uint64_t word)
{
    struct copy then = copy_of_word(word), now = copy_load(extent, index);

    if (now.donor != then.donor || now.slot != then.slot || (now.state != COPY_CURRENT && now.state != COPY_FILLING))
        return false;
    copy_outdate(extent, index);
    return true;
}
