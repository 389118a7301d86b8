/* SPDX-License-Identifier: MIT */
/* TCP between two processes, on loopback or between network namespaces, and its throughput. */
#include "bench.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define BLOCK_BYTES (256u << 10)

struct tcp_route tcp_route_of(struct arguments *args)
{
    return (struct tcp_route){
        .address = argument_text(args, "address", "127.0.0.1"),
        .peer_namespace = argument_text(args, "peer_namespace", NULL),
    };
}

static int socket_make(void)
{
    const int on = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
        fail_errno("cannot make a TCP socket");
    return fd;
}

/* Makes a socket in a network namespace; a socket stays in the namespace in which it was made. */
static int socket_make_in(const char *namespace)
{
    int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), other = open(namespace, O_RDONLY | O_CLOEXEC);

    if (own < 0 || other < 0 || setns(other, CLONE_NEWNET) < 0)
        fail_errno("cannot enter the network namespace %s", namespace);
    int fd = socket_make();

    if (setns(own, CLONE_NEWNET) < 0)
        fail_errno("cannot leave the network namespace %s", namespace);
    close(own);
    close(other);
    return fd;
}

/*
 * Makes both ends of a connection, before the child is forked, so that an error ends this process. The kernel
 * completes the connection before accept4() is called. The accepted end inherits the listener's TCP_NODELAY.
 */
static void pair_make(const struct tcp_route *route, int *ours, int *peers)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof(address);
    int listener = socket_make();

    if (inet_pton(AF_INET, route->address, &address.sin_addr) != 1)
        fail("address=%s is not an IPv4 address", route->address);
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        fail_errno("cannot listen on %s", route->address);
    *peers = route->peer_namespace ? socket_make_in(route->peer_namespace) : socket_make();
    if (connect(*peers, (struct sockaddr *)&address, length) < 0 ||
        (*ours = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
        fail_errno("cannot connect to %s", route->address);
    close(listener);
}

void tcp_peer_start(struct tcp_peer *peer, const struct tcp_route *route, void (*serve)(int fd, uint64_t ctx),
                    uint64_t ctx)
{
    int peers_fd, parent = getpid();

    pair_make(route, &peer->fd, &peers_fd);
    peer->pid = fork();
    if (peer->pid < 0)
        fail_errno("cannot fork");
    if (peer->pid == 0) {
        child_follow_parent(parent);
        close(peer->fd);
        serve(peers_fd, ctx);
        _exit(EXIT_SUCCESS);
    }
    close(peers_fd);
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
    struct tcp_route route = tcp_route_of(args);
    uint64_t ms = argument_number(args, "ms", 500, MS_MAX), bytes = 0;

    arguments_check(args);
    tcp_peer_start(&peer, &route, send_blocks, 0);
    uint64_t started_ns = clock_ns(), stop_at_ns = started_ns + ms * NS_PER_MS;

    while (clock_ns() < stop_at_ns) {
        ssize_t n = recv(peer.fd, block, sizeof(block), 0);

        if (n <= 0)
            fail_errno("the connection to the peer broke");
        bytes += (uint64_t)n;
    }
    double seconds = (double)(clock_ns() - started_ns) / NS_PER_S;

    close(peer.fd);
    child_end(peer.pid);
    return json_pack("{s:I, s:f, s:f}", "bytes", (json_int_t)bytes, "seconds", seconds, "bytes_per_s",
                     (double)bytes / seconds);
}
