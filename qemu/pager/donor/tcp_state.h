/* SPDX-License-Identifier: MIT */
/*
 * The TCP state of a channel's connection, as the kernel knows it: whether bytes come, and whether sent ones are
 * acknowledged. On the channel's thread.
 */
#ifndef GHOSTBOX_PAGER_TCP_STATE_H
#define GHOSTBOX_PAGER_TCP_STATE_H

#include "donor/donor.h"

#define NO_PAGES_PASS "short requests are answered, pages are not: is the MTU the same on the whole way?"

/*
 * Whether short messages pass on this connection and pages do not: the channel is up and barren, it has sent requests
 * with a page and none was answered, while a short request was answered or sent bytes are not acknowledged.
 */
bool tcp_passes_no_page(const struct channel *channel);
/* While connecting: whether the server's greeting came and bytes that were sent since are not acknowledged. */
bool tcp_negotiation_is_stuck(const struct channel *channel);
/* While connecting: whether the machine has not answered at all. */
bool tcp_machine_is_silent(const struct channel *channel);
/* Returns a number that grows with each byte that comes. */
uint64_t tcp_heard(const struct channel *channel);
/*
 * Sets TCP_USER_TIMEOUT by the patience: the kernel then ends the connection if sent bytes are not acknowledged so
 * long.
 */
void tcp_set_timeout(const struct channel *channel, int fd);

#endif
