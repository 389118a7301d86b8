/* SPDX-License-Identifier: MIT */
#include "memserver/worker.h"

#include "common/log.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
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

static uint64_t requests_count(const struct worker *worker)
{
    const struct counters *counters = &worker->counters;
    return atomic_load_explicit(&counters->reads, memory_order_relaxed) +
           atomic_load_explicit(&counters->writes, memory_order_relaxed) +
           atomic_load_explicit(&counters->trims, memory_order_relaxed);
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

static void gathers_remove(struct worker *worker, const struct connection *connection)
{
    for (unsigned i = 0; i < worker->n_gathers; i++) {
        if (worker->gathers[i] == connection) {
            worker->gathers[i] = worker->gathers[--worker->n_gathers];
            return;
        }
    }
}

static void again_set(struct worker *worker, struct connection *connection, bool again)
{
    if (again != connection->again) {
        connection->again = again;
        worker->n_again += again ? 1 : -1u;
    }
}

/* How many bytes of the connection are to wake us. More than one: until when at the latest. */
static void mark_set(struct worker *worker, struct connection *connection, uint32_t bytes, uint64_t now_ns)
{
    bool was_gathering = connection->mark_bytes > 1;
    if (bytes > 1 && !was_gathering && worker->n_gathers == WORKER_GATHER_MAX) {
        return;
    }
    const int mark = (int)bytes;
    if (bytes != connection->mark_bytes) {
        if (setsockopt(connection->fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof(mark)) == 0) {
            connection->mark_bytes = bytes;
        } else {
            log_error("%s: SO_RCVLOWAT: %s", connection->peer, strerror(errno));
        }
    }
    bool gathers = connection->mark_bytes > 1;
    if (gathers) {
        connection->gather_until_ns = now_ns + GATHERING_WAIT_NS;
    }
    if (gathers && !was_gathering) {
        hot_remove(worker, connection);
        worker->gathers[worker->n_gathers++] = connection;
    } else if (!gathers && was_gathering) {
        gathers_remove(worker, connection);
    }
}

/* After a turn: what is to wake us next. */
static void gather_note(struct worker *worker, struct connection *connection, enum connection_step step)
{
    uint32_t n_bytes = (uint32_t)(connection->n_received_bytes - connection->noted_bytes);
    if (!worker->can_gather || (n_bytes == 0 && connection->mark_bytes == 1)) {
        return;
    }
    uint64_t now_ns = clock_ns();
    if (n_bytes == 0) {
        gathering_rest(&connection->gathering, now_ns);
        mark_set(worker, connection, 1, now_ns);
        return;
    }
    bool gathered = connection->mark_bytes > 1;
    bool free = worker->tried == NULL || worker->tried == connection ||
                !gathering_is_tried(&worker->tried->gathering, now_ns);
    struct gathering_turn turn = {.now_ns = now_ns,
                                  .n_requests = (uint32_t)(connection->n_requests - connection->noted_requests),
                                  .n_bytes = n_bytes,
                                  .gathered = gathered,
                                  .late = gathered && n_bytes < connection->mark_bytes,
                                  .may_try = free && waiting_is_settled(&worker->waiting, now_ns),
                                  .n_all_requests = requests_count(worker)};
    connection->noted_bytes = connection->n_received_bytes;
    connection->noted_requests = connection->n_requests;
    if (gathered) {
        counter_add(turn.late ? &worker->n_late : &worker->n_gathered, 1);
    }
    uint32_t mark_bytes = gathering_note(&connection->gathering, &turn);
    if (gathering_is_tried(&connection->gathering, now_ns)) {
        worker->tried = connection;
    } else if (worker->tried == connection) {
        worker->tried = NULL;
    }
    mark_set(worker, connection, step == STEP_INPUT ? mark_bytes : 1, now_ns);
}

static void connection_end(struct worker *worker, struct connection *connection)
{
    hot_remove(worker, connection);
    if (connection->mark_bytes > 1) {
        gathers_remove(worker, connection);
    }
    if (worker->tried == connection) {
        worker->tried = NULL;
    }
    again_set(worker, connection, false);
    if (connection->phase != PHASE_TRANSMISSION) {
        atomic_fetch_sub(&worker->n_handshaking, 1);
    } else if (connection->demand_context) {
        worker->waiting.is_waited_for = atomic_fetch_sub(&worker->n_demand, 1) > 1;
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
        atomic_fetch_add(&worker->n_demand, connection->demand_context);
        worker->waiting.is_waited_for = worker->waiting.is_waited_for || connection->demand_context;
    }
    again_set(worker, connection, step == STEP_AGAIN);
    unsigned interest = step == STEP_OUTPUT ? EPOLLOUT : EPOLLIN;
    if (step == STEP_CLOSED || !interest_set(worker, connection, interest)) {
        connection_end(worker, connection);
        return true;
    }
    if (connection->phase == PHASE_TRANSMISSION) {
        gather_note(worker, connection, step);
    }
    if (step == STEP_OUTPUT) {
        hot_remove(worker, connection);
    } else if (worked && connection->mark_bytes == 1) {
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

/* Waits no longer than gathering connections do. */
static int events_wait(struct worker *worker, struct epoll_event *events, int timeout_ms)
{
    if (worker->n_gathers == 0 || timeout_ms == 0) {
        return epoll_wait(worker->epoll_fd, events, EVENTS_MAX, timeout_ms);
    }
    uint64_t until_ns = worker->gathers[0]->gather_until_ns;
    for (unsigned i = 1; i < worker->n_gathers; i++) {
        uint64_t other_ns = worker->gathers[i]->gather_until_ns;
        until_ns = other_ns < until_ns ? other_ns : until_ns;
    }
    uint64_t now_ns = clock_ns();
    struct timespec timeout = {.tv_nsec = until_ns > now_ns ? (long)(until_ns - now_ns) : 0};
    return epoll_pwait2(worker->epoll_fd, events, EVENTS_MAX, &timeout, NULL);
}

/* Those that gathered for long enough. */
static void late_serve(struct worker *worker)
{
    uint64_t now_ns = worker->n_gathers > 0 ? clock_ns() : 0;
    /* Downwards: serving may take the one at i away and put the last in its place. */
    for (unsigned i = worker->n_gathers; i-- > 0;) {
        if (i < worker->n_gathers && worker->gathers[i]->gather_until_ns <= now_ns) {
            connection_serve(worker, worker->gathers[i]);
        }
    }
}

/* Waits for events and serves them. Returns how many there were. */
static int events_serve(struct worker *worker, int timeout_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int n = events_wait(worker, events, timeout_ms);
    for (int i = 0; i < n; i++) {
        if (events[i].data.ptr == NULL) {
            worker->stopping = true;
        } else {
            connection_serve(worker, events[i].data.ptr);
        }
    }
    late_serve(worker);
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
    bool trial = worker->tried != NULL && gathering_is_tried(&worker->tried->gathering, now_ns);
    waiting_note(&worker->waiting, now_ns, requests_count(worker), trial);
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
        bool gathers = worker->n_gathers > 0;
        int n = events_serve(worker, timeout_ms);
        again_serve(worker);
        handshakes_scan(worker);
        if (n == 0 && timeout_ms > 0 && !gathers) {
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

/* Waits of less than a millisecond need Linux 5.11 (epoll_wait(2)). */
static bool wait_is_fine(int epoll_fd)
{
    struct epoll_event event;
    const struct timespec now = {0};
    return epoll_pwait2(epoll_fd, &event, 1, &now, NULL) == 0;
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
    worker->can_gather = options->gather != GATHER_NEVER && wait_is_fine(worker->epoll_fd);
    worker->gathers_always = options->gather == GATHER_ALWAYS;
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
    connection->gathering.always = worker->gathers_always;
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
