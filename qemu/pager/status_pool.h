/* SPDX-License-Identifier: MIT */
/* What the control command status says of the pool and its donors. On the control thread. */
#ifndef GHOSTBOX_STATUS_POOL_H
#define GHOSTBOX_STATUS_POOL_H

#include "pager.h"

json_t *donors_to_json(struct pager *pager);
json_t *pool_to_json(struct pager *pager);
/* "ok", "degraded": copies are missing, or a donor is not as it should be; "lost": pages are. */
const char *pool_health(struct pager *pager);

#endif
