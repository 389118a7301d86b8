/* SPDX-License-Identifier: MIT */
/* The parts of the control command status that are about the pool and its donors. On the control thread. */
#ifndef GHOSTBOX_STATUS_POOL_H
#define GHOSTBOX_STATUS_POOL_H

#include "pager.h"

json_t *donors_to_json(struct pager *pager);
json_t *pool_to_json(struct pager *pager);
/*
 * Returns "lost" if pages are lost; "degraded" if copies are missing, or a donor is down, slow or draining; "ok"
 * otherwise.
 */
const char *pool_health(struct pager *pager);

#endif
