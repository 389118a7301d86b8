/* SPDX-License-Identifier: MIT */
/* TCP on loopback between two processes, and the throughput of it. */
#include "bench.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define BLOCK_BYTES (256u << 10)

static int connect_to(const struct sockaddr_in *address)
{
    const int on = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    return fd;
}

void tcp_peer_start(struct tcp_peer *peer, void (*serve)(int fd, uint64_t ctx), uint64_t ctx)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    const int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), parent = getpid();

    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail_errno("cannot listen on loopback");
    peer->pid = fork();
    if (peer->pid < 0)
        fail_errno("cannot fork");
    if (peer->pid == 0) {
        child_follow_parent(parent);
        close(listener);
        int fd = connect_to(&address);

        if (fd >= 0)
            serve(fd, ctx);
        _exit(EXIT_SUCCESS);
    }
    peer->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (peer->fd < 0)
        fail_errno("cannot accept a connection on loopback");
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    close(listener);
}

static void send_blocks(int fd, uint64_t ctx)
{
    static char block[BLOCK_BYTES];

    (void)ctx;
    while (send(fd, block, sizeof(block), MSG_NOSIGNAL) > 0)
        ;
}

json_t *wire_throughput(struct arguments *args)
{
    static char block[BLOCK_BYTES];
    struct tcp_peer peer;
    uint64_t ms = argument_number(args, "ms", 500, MS_MAX), bytes = 0;

    arguments_check(args);
    tcp_peer_start(&peer, send_blocks, 0);
    uint64_t started_ns = clock_ns(), stop_at_ns = started_ns + ms * NS_PER_MS;

    while (clock_ns() < stop_at_ns) {
        ssize_t n = recv(peer.fd, block, sizeof(block), 0);

        if (n <= 0)
            fail_errno("the connection on loopback broke");
        bytes += (uint64_t)n;
    }
    double seconds = (double)(clock_ns() - started_ns) / NS_PER_S;

    close(peer.fd);
    child_end(peer.pid);
    return json_pack("{s:I, s:f, s:f}", "bytes", (json_int_t)bytes, "seconds", seconds, "bytes_per_s",
                     (double)bytes / seconds);
}
