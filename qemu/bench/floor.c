/* SPDX-License-Identifier: MIT */
/*
 * Measures what a remote fault costs at least: one request and answer over TCP, and one empty round trip of a
 * userfaultfd.
 *
 * Each is measured alone, because together three processes would poll, where a fault has two. Another process, in
 * place of the pager, answers the empty round trip by UFFDIO_ZEROPAGE in shared memory.
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REQUEST_BYTES 16u

struct waiter {
    int fd;
    uint64_t poll_us;
};

/* Waits as the pager does: yields for poll_us since since_ns, so that the caller polls again, and then sleeps. */
static void waiter_wait(const struct waiter *waiter, uint64_t since_ns)
{
    struct pollfd event = {.fd = waiter->fd, .events = POLLIN};

    if (clock_ns() - since_ns >= waiter->poll_us * NS_PER_US)
        poll(&event, 1, -1);
    else
        sched_yield();
}

/* Receives all bytes. Returns false if the other end has closed the connection. */
static bool receive_all(const struct waiter *waiter, char *buffer, size_t bytes)
{
    uint64_t since_ns = clock_ns();
    size_t got = 0;

    while (got < bytes) {
        ssize_t n = recv(waiter->fd, buffer + got, bytes - got, MSG_DONTWAIT);

        if (n > 0)
            got += (size_t)n;
        else if (n == 0 || errno != EAGAIN)
            return false;
        else
            waiter_wait(waiter, since_ns);
    }
    return true;
}

/* Returns the quantiles and each sample, as the caller adds the samples of one floor to those of the other. */
static json_t *one_by_one(struct samples *samples)
{
    json_t *raw = json_array();

    for (uint64_t i = 0; i < samples->n; i++)
        json_array_append_new(raw, json_integer((json_int_t)samples->ns[i]));
    json_t *result = json_pack("{s:o, s:o}", "latency", samples_to_json(samples), "ns", raw);

    samples_free(samples);
    return result;
}

static void answer_pings(int fd, uint64_t poll_us)
{
    static char page[PAGE_BYTES];
    char request[REQUEST_BYTES];
    struct waiter waiter = {fd, poll_us};

    while (receive_all(&waiter, request, sizeof(request)))
        if (send(fd, page, sizeof(page), MSG_NOSIGNAL) != sizeof(page))
            return;
}

json_t *floor_ping_pong(struct arguments *args)
{
    static char page[PAGE_BYTES], request[REQUEST_BYTES];
    struct tcp_peer peer;
    struct samples samples;
    struct tcp_route route = tcp_route_of(args);
    uint64_t count = argument_number(args, "count", 1000, UINT32_MAX);
    uint64_t client_us = argument_number(args, "client_us", 50, SPIN_MAX_US);
    uint64_t server_us = argument_number(args, "server_us", 20, SPIN_MAX_US);

    arguments_check(args);
    samples_create(&samples, count);
    tcp_peer_start(&peer, &route, answer_pings, server_us);
    struct waiter waiter = {peer.fd, client_us};

    while (samples.n < count) {
        uint64_t before_ns = clock_ns();

        if (send(peer.fd, request, sizeof(request), MSG_NOSIGNAL) != sizeof(request) ||
            !receive_all(&waiter, page, sizeof(page)))
            fail("the connection to the peer broke");
        samples.ns[samples.n++] = clock_ns() - before_ns;
    }
    close(peer.fd);
    child_end(peer.pid);
    return one_by_one(&samples);
}

/*
 * Makes a userfaultfd by /dev/userfaultfd, as the pager does, or by the system call on kernels without that device.
 */
static int userfault_open(void)
{
    struct uffdio_api api = {.api = UFFD_API};
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int fd = device >= 0 ? ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK)
                         : (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (device >= 0)
        close(device);
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
        fail_errno("cannot make a userfaultfd");
    return fd;
}

static void answer_faults(int fd, uint64_t poll_us)
{
    struct waiter waiter = {fd, poll_us};
    struct uffd_msg message;

    for (uint64_t since_ns = clock_ns();;) {
        if (read(fd, &message, sizeof(message)) != sizeof(message)) {
            waiter_wait(&waiter, since_ns);
            continue;
        }
        struct uffdio_zeropage zero = {
            .range = {message.arg.pagefault.address & ~(uint64_t)(PAGE_BYTES - 1), PAGE_BYTES}};

        if (ioctl(fd, UFFDIO_ZEROPAGE, &zero) < 0)
            _exit(EXIT_FAILURE); /* the parent then waits until the caller's deadline ends it */
        since_ns = clock_ns();
    }
}

static volatile uint64_t *userfault_memory(int fd, uint64_t bytes)
{
    struct uffdio_register reg = {.range = {0, bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    int memfd = memfd_create("ghostbox-bench-floor", MFD_CLOEXEC);

    if (memfd < 0 || ftruncate(memfd, (off_t)bytes) < 0)
        fail_errno("cannot make a memfd of %llu bytes", (unsigned long long)bytes);
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);

    if (base == MAP_FAILED)
        fail_errno("cannot map %llu bytes", (unsigned long long)bytes);
    reg.range.start = (uintptr_t)base;
    if (ioctl(fd, UFFDIO_REGISTER, &reg) < 0)
        fail_errno("cannot register memory with userfaultfd");
    close(memfd);
    return base;
}

json_t *floor_userfault(struct arguments *args)
{
    struct samples samples;
    uint64_t count = argument_number(args, "count", 1000, UINT32_MAX);
    uint64_t poll_us = argument_number(args, "poll_us", 50, SPIN_MAX_US);
    int parent = getpid();

    arguments_check(args);
    samples_create(&samples, count);
    int fd = userfault_open();
    volatile uint64_t *words = userfault_memory(fd, count * PAGE_BYTES);
    uint32_t *pages = pages_shuffled(count, count, 1);
    int pid = fork();

    if (pid < 0)
        fail_errno("cannot fork");
    if (pid == 0) {
        child_follow_parent(parent);
        answer_faults(fd, poll_us);
    }
    for (; samples.n < count; samples.n++) {
        uint64_t before_ns = clock_ns();

        (void)words[(uint64_t)pages[samples.n] * PAGE_WORDS];
        samples.ns[samples.n] = clock_ns() - before_ns;
    }
    child_end(pid);
    free(pages);
    return one_by_one(&samples);
}
