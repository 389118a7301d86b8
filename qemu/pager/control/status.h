/* SPDX-License-Identifier: MIT */
/* The commands of the control socket. */
#ifndef GHOSTBOX_PAGER_STATUS_H
#define GHOSTBOX_PAGER_STATUS_H

#include "control.h"

extern const struct control_command pager_commands[];

#endif
