/* SPDX-License-Identifier: MIT */
#ifndef GHOSTBOX_PAGER_FUZZ_LINK_CHECK_H
#define GHOSTBOX_PAGER_FUZZ_LINK_CHECK_H

#include "pager.h"

/*
 * Ends the process (assert) unless each page that counts as present is in a state that says so, and on the one list
 * of that state, and pages outside the regions are absent. Nothing waits for a frame.
 */
void check_pages(struct pager *pager);

#endif
