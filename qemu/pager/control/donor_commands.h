/* SPDX-License-Identifier: MIT */
/*
 * Control commands about donors, which are added, drained and removed while the pager runs. On the control thread.
 * docs/reference/pager.md has their arguments, results and errors.
 */
#ifndef GHOSTBOX_DONOR_COMMANDS_H
#define GHOSTBOX_DONOR_COMMANDS_H

#include "control.h"

json_t *donor_command_add(void *pager, const json_t *args, struct control_error *err);
json_t *donor_command_drain(void *pager, const json_t *args, struct control_error *err);
json_t *donor_command_keep(void *pager, const json_t *args, struct control_error *err);
/* For a caller that knows that the donor's memory is gone, because the donor runs and has the export no more. */
json_t *donor_command_lose(void *pager, const json_t *args, struct control_error *err);
json_t *donor_command_remove(void *pager, const json_t *args, struct control_error *err);
json_t *donor_command_set_rate(void *pager, const json_t *args, struct control_error *err);

#endif
