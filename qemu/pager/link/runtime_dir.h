/* SPDX-License-Identifier: MIT */
/*
 * Makes files of the runtime directory anew that were removed, on SIGUSR1: the socket for shims and the state file
 * here, the control socket by control_restore(). The sender of the signal makes the directory.
 */
#ifndef GHOSTBOX_PAGER_RUNTIME_DIR_H
#define GHOSTBOX_PAGER_RUNTIME_DIR_H

#include "link/link.h"

/*
 * Makes the files anew if that was asked for (files_asked). On the evict thread, which alone changes regions and
 * extents. In the epoll, data.ptr of the listening socket is the owner of the links.
 */
void runtime_dir_restore(struct links *links);

#endif
