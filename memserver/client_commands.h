/* SPDX-License-Identifier: MIT */
/* The commands of the control socket about clients, and what `status` says of them; ctx is a struct server. */
#ifndef GHOSTBOX_MEMSERVER_CLIENT_COMMANDS_H
#define GHOSTBOX_MEMSERVER_CLIENT_COMMANDS_H

#include "common/control.h"
#include "memserver/exports.h"

json_t *client_set_command(void *ctx, const json_t *args, struct control_error *err);
json_t *client_close_command(void *ctx, const json_t *args, struct control_error *err);

/*
 * Reads the argument "client". Returns false after control_fail(). If it may be left out, *id is NULL when it is not
 * there.
 */
bool client_argument(const json_t *args, bool optional, const char **id, struct control_error *err);
/* Returns an array of all clients with limits and counters. */
json_t *clients_to_json(struct exports *exports);

#endif
