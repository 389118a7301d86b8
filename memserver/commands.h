/* SPDX-License-Identifier: MIT */
/* The commands of the control socket; ctx is a struct server. */
#ifndef GHOSTBOX_MEMSERVER_COMMANDS_H
#define GHOSTBOX_MEMSERVER_COMMANDS_H

#include "common/control.h"

extern const struct control_command memserver_commands[];

#endif
