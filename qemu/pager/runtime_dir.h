/* SPDX-License-Identifier: MIT */
/*
 * What lies in the runtime directory is made anew when somebody has removed it: the socket for shims and the state
 * file here, the control socket by control_restore(). SIGUSR1 asks for it; the directory itself is the caller's to
 * make.
 */
#ifndef GHOSTBOX_PAGER_RUNTIME_DIR_H
#define GHOSTBOX_PAGER_RUNTIME_DIR_H

#include "evict.h"

/* The evict thread, which alone changes regions and extents. Does nothing unless it was asked for (files_asked). */
void runtime_dir_restore(struct evict_loop *loop);

#endif
