/* SPDX-License-Identifier: MIT */
/*
 * ghostbox-memserver: lends this machine's memory over NBD.
 *
 * Theory of operation
 *
 * Threads. The main thread accepts connections (listeners.h), waits for signals and ends the program. Each worker
 * serves, by epoll, the connections that it was given when they were accepted; a connection never changes its worker,
 * so that its state needs no lock. The control thread runs the commands of the control socket. There is no other
 * thread.
 *
 * Memory. An export is promised memory: an address range that the kernel fills when it is written to (store.h). The
 * sum of the exports never exceeds --size. A bitmap says which pages hold data; TRIM and zeroes give pages back, and
 * holes are answered as holes. Each connection has buffers of a fixed size besides (connection.h); --max-connections
 * bounds their number.
 *
 * A turn of a connection (connection_run): receive once, as much as there is; answer all requests in it; send once.
 * Reads are sent from the export's memory and the payloads of large writes are received into it, so that the kernel's
 * copy is the only one. With n requests in flight a turn costs 2/n system calls a request, plus one epoll_wait when
 * the worker had to sleep; with --poll-us the worker tries the socket again first (worker.h). If a client sends each
 * of n requests by itself, the worker waits for several of them where that is no loss, half a millisecond at most
 * (gathering.h).
 *
 * Shares. While connections of several clients have one worker, their turns are short, and the clients take turns by
 * deficit round robin (fair.h): each gets the same share of the worker, whatever its connections and requests.
 *
 * Clients. An export may be made for a client, with limits over all its exports (clients.h): memory, connections, and
 * bandwidth. A connection whose client has used up its bandwidth waits without a worker (delays.h).
 *
 * Newcomers. Connections that have opened no export have a deadline and limits of their own (handshakes.h).
 *
 * Slow readers. An answer that does not fit into a socket stays queued as pointers, and no more requests of that
 * connection are read until the answer is sent. One turn does a bounded amount of work, so that the worker's other
 * connections get their turns.
 *
 * Locks. exports.lock guards the list of exports and the lists of clients attached to them; worker.lock guards the
 * worker's list of connections; listeners.lock guards the table of listening sockets; handshakes.lock guards the list
 * of connections that have opened no export. No thread holds one of them while it takes another, or on the path of a
 * request.
 *
 * Rights. Once all threads run, the program may make only the system calls that it needs (common/sandbox.h).
 *
 * Control socket. A control socket that was removed from the file system is made anew on SIGUSR1.
 *
 * Failures. A malformed handshake or request ends its connection. Removing an export by force shuts down its
 * connections, which the workers then close. SIGTERM, SIGINT and the command `shutdown` end the process, and with it
 * all memory that it lends; the control plane knows which leases there are, and decides when the process may end.
 * --size keeps the machine from running out of memory; an export or connection that cannot be created is refused, and
 * the server goes on.
 */
#include "common/control.h"
#include "common/log.h"
#include "common/sandbox.h"
#include "memserver/commands.h"
#include "memserver/options.h"
#include "memserver/server.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define PROGRAM "ghostbox-memserver"

/* Blocks SIGTERM, SIGINT and SIGUSR1. Returns a descriptor from which they are read instead, or -errno. */
static int signals_open(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0) {
        return -errno;
    }
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

/* The parent process waits for this line. */
static void address_print(const struct listening *at)
{
    const char *format = strchr(at->host, ':') != NULL ? "listening on [%s]:%u\n" : "listening on %s:%u\n";
    printf(format, at->host, at->port);
    fflush(stdout);
}

static int control_open(struct control **control, const char *path, struct server *server)
{
    if (path == NULL) {
        return 0;
    }
    int rc = control_start(control, path, memserver_commands, server);
    if (rc < 0) {
        log_error("cannot make the control socket %s: %s", path, strerror(-rc));
    }
    return rc;
}

/*
 * Makes the control socket anew if SIGUSR1 ended server_run(). Returns whether it did; any other signal, or the
 * command `shutdown`, ends the server.
 */
static bool restore_asked(int signal_fd, struct control *control)
{
    struct signalfd_siginfo info;
    if (read(signal_fd, &info, sizeof(info)) != sizeof(info) || info.ssi_signo != SIGUSR1) {
        return false;
    }
    control_restore(control);
    return true;
}

static int serve(const struct options *options, int signal_fd)
{
    struct server server;
    int rc = server_open(&server, options);
    if (rc < 0) {
        return EXIT_FAILURE;
    }
    struct control *control = NULL;
    rc = control_open(&control, options->control_path, &server);
    if (rc == 0) {
        server.sandboxed = !options->no_seccomp && sandbox_enter();
        struct listening at[LISTENERS_MAX];
        listeners_list(&server.listeners, at);
        address_print(at);
        log_info("serving on %s port %u, %llu bytes, %u threads", at[0].host, at[0].port,
                 (unsigned long long)options->size_bytes, options->n_threads);
        do {
            server_run(&server, signal_fd);
        } while (restore_asked(signal_fd, control));
        log_info("ending");
    }
    control_stop(control);
    server_close(&server);
    return rc == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    struct options options;
    enum options_result parsed = options_parse(&options, argc, argv);
    if (parsed != OPTIONS_OK) {
        options_free(&options);
        return parsed == OPTIONS_DONE ? EXIT_SUCCESS : 2;
    }
    int status = EXIT_FAILURE;
    int rc = log_open(PROGRAM, options.log_path, options.log_level);
    if (rc < 0) {
        fprintf(stderr, PROGRAM ": cannot open the log file %s: %s\n", options.log_path, strerror(-rc));
    } else {
        sandbox_no_new_privs();
        int signal_fd = signals_open();
        if (signal_fd < 0) {
            log_error("cannot wait for signals: %s", strerror(-signal_fd));
        } else {
            status = serve(&options, signal_fd);
            close(signal_fd);
        }
    }
    options_free(&options);
    return status;
}
