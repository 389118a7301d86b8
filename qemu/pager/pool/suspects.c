/* SPDX-License-Identifier: MIT */
#include "pool/suspects.h"

#include <string.h>

void suspects_add(struct suspects *suspects, struct suspect suspect)
{
    pthread_mutex_lock(&suspects->lock);
    if (suspects->n < SUSPECTS_MAX)
        suspects->list[suspects->n++] = suspect;
    pthread_mutex_unlock(&suspects->lock);
}

uint32_t suspects_take(struct suspects *suspects, struct suspect list[SUSPECTS_MAX])
{
    pthread_mutex_lock(&suspects->lock);
    uint32_t n = suspects->n;

    memcpy(list, suspects->list, n * sizeof(*list));
    suspects->n = 0;
    pthread_mutex_unlock(&suspects->lock);
    return n;
}
