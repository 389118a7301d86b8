/* SPDX-License-Identifier: MIT */
#include "donor/tcp_state.h"

#include "donor/patience.h"
#include "donor/wire.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define USER_TIMEOUT_MS 2000u
#define STUCK_MS        1000u
#define TCP_SYN_SENT_   2 /* TCP_SYN_SENT of <netinet/tcp.h>, which cannot be included beside <linux/tcp.h> */

void tcp_set_timeout(const struct channel *channel, int fd)
{
    uint32_t looks = channel->beat.patience ? channel->beat.patience : PATIENCE_LOOKS;
    unsigned int ms = (unsigned int)(looks * LOOK_NS / 1000000u);

    ms = ms > USER_TIMEOUT_MS ? ms : USER_TIMEOUT_MS;
    /* This fails on a Unix socket, which needs no timeout. */
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
}

/* Asks the kernel for TCP_INFO. Returns false if the socket is not a TCP socket. */
static bool tcp_ask(const struct channel *channel, struct tcp_info *info)
{
    socklen_t length = sizeof(*info);

    return getsockopt(channel_socket(channel), IPPROTO_TCP, TCP_INFO, info, &length) == 0;
}

bool tcp_machine_is_silent(const struct channel *channel)
{
    struct tcp_info info = {0};

    return tcp_ask(channel, &info) && info.tcpi_state == TCP_SYN_SENT_;
}

/* Where libnbd moves the bytes, only the kernel knows how much of a long answer has come. */
uint64_t tcp_heard(const struct channel *channel)
{
    struct tcp_info info = {0};

    if (channel->wire)
        return wire_received(channel->wire);
    uint64_t events = channel->n_chunks + channel->n_ended;

    return tcp_ask(channel, &info) ? events + info.tcpi_bytes_received : events;
}

/*
 * Whether bytes have come on this connection, but bytes are to be sent and for STUCK_MS no acknowledgement came, not
 * even of a window probe.
 */
static bool is_stuck(const struct channel *channel)
{
    struct tcp_info info = {0};

    return tcp_ask(channel, &info) && info.tcpi_bytes_received > 0 &&
           (info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0) && info.tcpi_last_ack_recv >= STUCK_MS;
}

bool tcp_passes_no_page(const struct channel *channel)
{
    return channel->state == CHANNEL_UP && channel->barren && channel->carries && channel->n_carried == 0 &&
           (channel->beat.short_answered || is_stuck(channel));
}

bool tcp_negotiation_is_stuck(const struct channel *channel)
{
    return is_stuck(channel);
}
