/* SPDX-License-Identifier: MIT */
/* The control command page-map: where the pages of each region are, counted in cells: see page_map.c. */
#ifndef GHOSTBOX_PAGE_MAP_H
#define GHOSTBOX_PAGE_MAP_H

#include "control.h"

json_t *page_map_command(void *ctx, const json_t *args, struct control_error *err);

#endif
