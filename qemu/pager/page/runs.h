/* SPDX-License-Identifier: MIT */
/* Arrays of page numbers, and the runs of neighbours in them. */
#ifndef GHOSTBOX_PAGER_RUNS_H
#define GHOSTBOX_PAGER_RUNS_H

#include <stdint.h>

/* Sorts page numbers, so that neighbours stand together. */
void sort_pages(uint32_t *pages, uint32_t n);
/* Returns the length of the run of neighbours at the start of n > 0 page numbers, at most max. */
uint32_t run_length(const uint32_t *pages, uint32_t n, uint32_t max);

#endif
