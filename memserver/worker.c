/* SPDX-License-Identifier: MIT */
#include "memserver/worker.h"

#include "common/log.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_MAX 64
/* A spin looks at all connections, not only the hot ones, every so many rounds. */
#define SPIN_ROUNDS      8u
#define SCAN_INTERVAL_MS 500

static uint64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void hot_remove(struct worker *worker, struct connection *connection)
{
    if (!connection->hot) {
        return;
    }
    connection->hot = false;
    for (unsigned i = 0; i < worker->n_hot; i++) {
        if (worker->hot[i] == connection) {
            worker->hot[i] = worker->hot[--worker->n_hot];
            return;
        }
    }
}

static void hot_add(struct worker *worker, struct connection *connection)
{
    if (connection->hot || waiting_spin_ns(&worker->waiting) == 0) {
        return;
    }
    if (worker->n_hot == WORKER_HOT_MAX) {
        hot_remove(worker, worker->hot[0]);
    }
    connection->hot = true;
    worker->hot[worker->n_hot++] = connection;
}

static void hot_clear(struct worker *worker)
{
    while (worker->n_hot > 0) {
        hot_remove(worker, worker->hot[0]);
    }
}

static void again_set(struct worker *worker, struct connection *connection, bool again)
{
    if (again != connection->again) {
        connection->again = again;
        worker->n_again += again ? 1 : -1u;
    }
}

static void connection_end(struct worker *worker, struct connection *connection)
{
    hot_remove(worker, connection);
    again_set(worker, connection, false);
    if (connection->phase != PHASE_TRANSMISSION) {
        atomic_fetch_sub(&worker->n_handshaking, 1);
    }
    pthread_mutex_lock(&worker->lock);
    *connection->link = connection->next;
    if (connection->next != NULL) {
        connection->next->link = connection->link;
    }
    pthread_mutex_unlock(&worker->lock);
    log_debug("%s: closed", connection->peer);
    connection_free(connection);
    /* Last: who sees the number fall may count on the rest being done. */
    atomic_fetch_sub(&worker->n_connections, 1);
}

/* What epoll should report; a system call only when that changes, which it does for readers that fall behind. */
static bool interest_set(struct worker *worker, struct connection *connection, unsigned interest)
{
    if (connection->interest == interest) {
        return true;
    }
    struct epoll_event event = {.events = interest, .data.ptr = connection};
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event) < 0) {
        log_error("%s: epoll: %s: connection closed", connection->peer, strerror(errno));
        return false;
    }
    connection->interest = interest;
    return true;
}

/* One turn of one connection. Returns whether it sent or received anything; it may be gone afterwards. */
static bool connection_serve(struct worker *worker, struct connection *connection)
{
    bool was_handshaking = connection->phase != PHASE_TRANSMISSION;
    bool worked;
    enum connection_step step = connection_run(connection, &worked);
    if (was_handshaking && connection->phase == PHASE_TRANSMISSION) {
        atomic_fetch_sub(&worker->n_handshaking, 1);
    }
    again_set(worker, connection, step == STEP_AGAIN);
    unsigned interest = step == STEP_OUTPUT ? EPOLLOUT : EPOLLIN;
    if (step == STEP_CLOSED || !interest_set(worker, connection, interest)) {
        connection_end(worker, connection);
        return true;
    }
    if (step == STEP_OUTPUT) {
        hot_remove(worker, connection);
    } else if (worked) {
        hot_add(worker, connection);
    }
    return worked;
}

/* Only the worker removes: what follows the first one stays valid without the lock. */
static struct connection *connections_first(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    struct connection *first = worker->connections;
    pthread_mutex_unlock(&worker->lock);
    return first;
}

/* Connections that had more to do than one turn allows. */
static void again_serve(struct worker *worker)
{
    struct connection *connection = worker->n_again > 0 ? connections_first(worker) : NULL;
    while (worker->n_again > 0 && connection != NULL) {
        struct connection *next = connection->next;
        if (connection->again) {
            connection_serve(worker, connection);
        }
        connection = next;
    }
}

/* Waits for events and serves them. Returns how many there were. */
static int events_serve(struct worker *worker, int timeout_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int n = epoll_wait(worker->epoll_fd, events, EVENTS_MAX, timeout_ms);
    for (int i = 0; i < n; i++) {
        if (events[i].data.ptr == NULL) {
            worker->stopping = true;
        } else {
            connection_serve(worker, events[i].data.ptr);
        }
    }
    return n;
}

static bool hot_serve(struct worker *worker)
{
    bool worked = false;
    /* Downwards: serving may take the one at i away and put the last in its place. */
    for (unsigned i = worker->n_hot; i-- > 0;) {
        if (i < worker->n_hot) {
            worked |= connection_serve(worker, worker->hot[i]);
        }
    }
    return worked;
}

/* Says what was done, for the choice of how to wait. */
static void work_note(struct worker *worker, uint64_t now_ns)
{
    const struct counters *counters = &worker->counters;
    uint64_t n_requests = atomic_load_explicit(&counters->reads, memory_order_relaxed) +
                          atomic_load_explicit(&counters->writes, memory_order_relaxed) +
                          atomic_load_explicit(&counters->trims, memory_order_relaxed);
    waiting_note(&worker->waiting, now_ns, n_requests);
}

/* Tries the hot connections until as long as it may has passed without work. */
static void worker_spin(struct worker *worker)
{
    uint64_t worked_at_ns = clock_ns();
    for (unsigned round = 1; worker->n_hot > 0 && worker->n_again == 0 && !worker->stopping; round++) {
        bool worked = hot_serve(worker);
        if (round % SPIN_ROUNDS == 0) {
            worked |= events_serve(worker, 0) > 0;
        }
        uint64_t now_ns = clock_ns();
        if (worked) {
            worked_at_ns = now_ns;
            work_note(worker, now_ns);
        } else if (now_ns - worked_at_ns >= waiting_spin_ns(&worker->waiting)) {
            break;
        } else {
            /* The kernel likes to put who waits for our reply on this processor: it must not wait for our spinning.
             */
            sched_yield();
        }
    }
}

/* Ends connections that did not get through the handshake in time. */
static void handshakes_scan(struct worker *worker)
{
    int64_t now_ms = clock_coarse_ms();
    if (atomic_load(&worker->n_handshaking) == 0 || now_ms - worker->scanned_at_ms < SCAN_INTERVAL_MS) {
        return;
    }
    worker->scanned_at_ms = now_ms;
    struct connection *connection = connections_first(worker);
    while (connection != NULL) {
        struct connection *next = connection->next;
        if (connection->phase != PHASE_TRANSMISSION &&
            now_ms - connection->created_at_ms > worker->handshake_limit_ms) {
            log_info("%s: no export chosen after %lld ms: connection closed", connection->peer,
                     (long long)worker->handshake_limit_ms);
            connection_end(worker, connection);
        }
        connection = next;
    }
}

static int timeout_choose_ms(struct worker *worker)
{
    if (worker->n_again > 0) {
        return 0;
    }
    if (worker->waiting.eager) {
        return WAITING_GAP_MS;
    }
    return atomic_load(&worker->n_handshaking) > 0 ? SCAN_INTERVAL_MS : -1;
}

static void *worker_thread(void *arg)
{
    struct worker *worker = arg;
    while (!worker->stopping) {
        if (waiting_spin_ns(&worker->waiting) > 0) {
            worker_spin(worker);
        }
        hot_clear(worker);
        int timeout_ms = timeout_choose_ms(worker);
        int n = events_serve(worker, timeout_ms);
        again_serve(worker);
        handshakes_scan(worker);
        if (n == 0 && timeout_ms > 0) {
            waiting_rest(&worker->waiting, clock_ns());
        } else {
            work_note(worker, clock_ns());
        }
    }
    while (worker->connections != NULL) {
        connection_end(worker, worker->connections);
    }
    return NULL;
}

/* Signals are for the main thread. */
static int thread_start(struct worker *worker)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&worker->thread, NULL, worker_thread, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -rc;
}

int worker_start(struct worker *worker, const struct options *options)
{
    waiting_open(&worker->waiting, options->poll_us, options->keep_awake);
    worker->handshake_limit_ms = (int64_t)options->handshake_limit_s * 1000;
    pthread_mutex_init(&worker->lock, NULL);
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (worker->epoll_fd < 0) {
        return -errno;
    }
    worker->stop_fd = eventfd(0, EFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    int rc = 0;
    if (worker->stop_fd < 0 || epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, worker->stop_fd, &event) < 0) {
        rc = -errno;
    }
    rc = rc < 0 ? rc : thread_start(worker);
    if (rc < 0) {
        close(worker->epoll_fd);
        close(worker->stop_fd);
        waiting_close(&worker->waiting);
        return rc;
    }
    worker->started = true;
    return 0;
}

void worker_stop(struct worker *worker)
{
    if (!worker->started) {
        return;
    }
    if (eventfd_write(worker->stop_fd, 1) < 0) {
        log_error("cannot stop a worker: %s", strerror(errno));
        return;
    }
    pthread_join(worker->thread, NULL);
    close(worker->epoll_fd);
    close(worker->stop_fd);
    waiting_close(&worker->waiting);
    pthread_mutex_destroy(&worker->lock);
}

int worker_adopt(struct worker *worker, int fd, const char *peer, struct exports *exports)
{
    struct connection *connection = connection_new(fd, peer, exports, &worker->counters);
    if (connection == NULL) {
        close(fd);
        return -ENOMEM;
    }
    connection->interest = EPOLLOUT;
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = connection};
    atomic_fetch_add(&worker->n_connections, 1);
    atomic_fetch_add(&worker->n_handshaking, 1);
    /* Under the lock: from the first event on the worker may end the connection, which waits for its place in the
     * list. */
    pthread_mutex_lock(&worker->lock);
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        int rc = -errno;
        pthread_mutex_unlock(&worker->lock);
        atomic_fetch_sub(&worker->n_handshaking, 1);
        connection_free(connection);
        atomic_fetch_sub(&worker->n_connections, 1);
        return rc;
    }
    connection->next = worker->connections;
    connection->link = &worker->connections;
    if (connection->next != NULL) {
        connection->next->link = &connection->next;
    }
    worker->connections = connection;
    pthread_mutex_unlock(&worker->lock);
    return 0;
}
