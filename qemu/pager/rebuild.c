/* SPDX-License-Identifier: MIT */
#include "pager.h"

void pager_suspect(struct pager *pager, uint32_t page, uint32_t copy, uint64_t word)
{
    struct suspects *suspects = &pager->suspects;

    pthread_mutex_lock(&suspects->lock);
    if (suspects->n < SUSPECTS_MAX)
        suspects->list[suspects->n++] = (struct suspect){page / pager->pool.extent_pages, copy, word};
    pthread_mutex_unlock(&suspects->lock);
    pager_wake_evict(pager);
}
