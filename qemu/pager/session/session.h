/* SPDX-License-Identifier: MIT */
/* The session: handles a shim's messages: hello, regions that come and end, answers to zaps, discards. */
#ifndef GHOSTBOX_PAGER_SESSION_H
#define GHOSTBOX_PAGER_SESSION_H

#include "link/link.h"

/* The handler for links whose owner is the evict loop. Evict thread only. */
extern const struct link_handler session_handler;

#endif
