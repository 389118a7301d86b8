/* SPDX-License-Identifier: MIT */
/* The socket to the pager: the handshake, and the checks of the pager's messages. */
#ifndef GHOSTBOX_SHIM_LINK_H
#define GHOSTBOX_SHIM_LINK_H

#include "proto.h"
#include "region.h"
#include "say.h"

/* Connects to the pager. Returns the socket, or -errno with the reason in text, as the functions below. */
int link_open(const char *path, struct text *text);
/* Sends HELLO and waits for WELCOME; the caller closes *device_fd. Returns 0 or -errno. */
int link_hello(int sock, uint32_t flags, struct gb_welcome *welcome, int *device_fd, struct text *text);
/* Sends REGION with the region's descriptors and waits for REGION_OK. Returns 0 or -errno. */
int link_hand_over(int sock, const struct region *region, struct text *text);
/* Fills in the header of a message and sends it. Returns 0, or -errno without a text. */
int link_send(int sock, void *message, enum gb_msg_type type, uint32_t seq, uint32_t bytes);
/* Waits for one message. Returns 0 if it is whole and of this protocol, or -errno. */
int link_receive(int sock, void *buf, size_t buf_bytes, struct text *text);
/* Sets how long the socket waits to send or receive; 0: for ever. */
void link_set_timeout(int sock, unsigned int seconds);

#endif
