/* SPDX-License-Identifier: MIT */
/* Control commands about donors: they come, are drained and go while the pager runs. On the control thread. */
#ifndef GHOSTBOX_DONOR_COMMANDS_H
#define GHOSTBOX_DONOR_COMMANDS_H

#include "control.h"

json_t *donor_command_add(void *pager, const json_t *args, struct control_error *err);
json_t *donor_command_drain(void *pager, const json_t *args, struct control_error *err);
json_t *donor_command_keep(void *pager, const json_t *args, struct control_error *err);
/* Its memory is gone, says who knows: the donor itself, which runs and does not have the export any more. */
json_t *donor_command_lose(void *pager, const json_t *args, struct control_error *err);
json_t *donor_command_remove(void *pager, const json_t *args, struct control_error *err);
json_t *donor_command_set_rate(void *pager, const json_t *args, struct control_error *err);

#endif
