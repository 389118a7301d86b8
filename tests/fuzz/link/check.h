/* SPDX-License-Identifier: MIT */
#ifndef TESTS_FUZZ_LINK_CHECK_H
#define TESTS_FUZZ_LINK_CHECK_H

#include "pager.h"

/*
 * Checks the page table, and ends the process (assert) if it is wrong: a page counts as present exactly if its state
 * says so, each page is on the list of its state, pages outside the regions are absent, and no page waits for a
 * frame.
 */
void check_pages(struct pager *pager);

#endif
