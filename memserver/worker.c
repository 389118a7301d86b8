/* SPDX-License-Identifier: MIT */
#include "memserver/worker.h"

#include "common/log.h"
#include "memserver/clock.h"

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
/* While it spins, the worker looks at all connections, beside the hot ones, every so many rounds. */
#define SPIN_ROUNDS      8u
#define SCAN_INTERVAL_MS 500
/* A worker whose clients contend has always work; this long after that it may spin again. */
#define CONTENDED_NS UINT64_C(100000000)

static uint64_t requests_count(const struct worker *worker)
{
    const struct counters *counters = &worker->counters;
    return atomic_load_explicit(&counters->reads, memory_order_relaxed) +
           atomic_load_explicit(&counters->writes, memory_order_relaxed) +
           atomic_load_explicit(&counters->trims, memory_order_relaxed);
}

/* Whether connections of several clients have this worker; those that have opened no export count as one client. */
static bool is_shared(const struct worker *worker)
{
    bool handshakes = atomic_load_explicit(&worker->n_handshaking, memory_order_relaxed) > 0;
    return worker->fair.n_lanes + (handshakes ? 1 : 0) > 1;
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

/*
 * Sets how many bytes of the connection wake the worker (SO_RCVLOWAT). If it is more than one byte, the connection
 * gets a deadline, at which the worker serves it whatever has come.
 */
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

/* Tells gathering what the turn has received, and sets how many bytes wake the worker next. */
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
    delays_set(&worker->delays, connection, false);
    fair_leave(&worker->fair, &connection->fair);
    if (connection->phase != PHASE_TRANSMISSION) {
        handshakes_leave(worker->handshakes, &connection->handshake);
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
    /* n_connections falls last: a thread that sees it fall may count on the connection being freed. */
    atomic_fetch_sub(&worker->n_connections, 1);
}

/* Sets which events epoll reports, if they change, which they do for clients that read too slowly. False: failed. */
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

/* Called when the client has opened an export. */
static void transmission_begin(struct worker *worker, struct connection *connection)
{
    const struct export *export = connection->client.export;
    atomic_fetch_sub(&worker->n_handshaking, 1);
    atomic_fetch_add(&worker->n_demand, connection->demand_context);
    worker->waiting.is_waited_for = worker->waiting.is_waited_for || connection->demand_context;
    fair_join(&worker->fair, &connection->fair,
              export->client != NULL ? (const void *)export->client : (const void *)export);
}

/* Runs one turn of a connection, a short one if clients share the worker, and charges its lane. */
static enum connection_step turn_run(struct worker *worker, struct connection *connection, bool *worked)
{
    bool is_short = is_shared(worker);
    uint64_t before = connection->n_received_bytes + connection->replies.n_sent;
    bool shakes_hands = connection->phase == PHASE_TLS;
    connection->turn_bytes = is_short ? FAIR_QUANTUM_BYTES : CONNECTION_LONG_TURN;
    connection->spent_bytes = 0;
    enum connection_step step = connection_run(connection, worked);
    if (is_short) {
        int64_t moved = (int64_t)(connection->n_received_bytes + connection->replies.n_sent - before);
        int64_t cost = shakes_hands ? FAIR_QUANTUM_BYTES : FAIR_TURN_BYTES + moved + connection->spent_bytes;
        fair_charge(&worker->fair, &connection->fair, cost);
    }
    return step;
}

/*
 * Serves a connection, which may be freed afterwards. If it can go on at once, it is queued, or marked `again`.
 * Returns whether it sent or received anything.
 */
static bool connection_serve(struct worker *worker, struct connection *connection)
{
    bool was_handshaking = connection->phase != PHASE_TRANSMISSION;
    bool worked;
    enum connection_step step = turn_run(worker, connection, &worked);
    if (was_handshaking && connection->phase == PHASE_TRANSMISSION) {
        transmission_begin(worker, connection);
    }
    bool queues = step == STEP_AGAIN && is_shared(worker);
    again_set(worker, connection, step == STEP_AGAIN && !queues);
    delays_set(&worker->delays, connection, step == STEP_DELAYED);
    unsigned interest = step == STEP_OUTPUT ? EPOLLOUT : step == STEP_DELAYED ? 0 : EPOLLIN;
    if (step == STEP_CLOSED || !interest_set(worker, connection, interest)) {
        connection_end(worker, connection);
        return true;
    }
    if (connection->phase == PHASE_TRANSMISSION) {
        gather_note(worker, connection, step);
    }
    if (step == STEP_OUTPUT || step == STEP_DELAYED) {
        hot_remove(worker, connection);
    } else if (worked && connection->mark_bytes == 1) {
        hot_add(worker, connection);
    }
    if (queues) {
        fair_add(&worker->fair, &connection->fair);
    }
    return worked;
}

/* Serves a connection that is ready, or queues it if clients share the worker. */
static void connection_ready(struct worker *worker, struct connection *connection)
{
    if (is_shared(worker)) {
        again_set(worker, connection, false);
        fair_add(&worker->fair, &connection->fair);
    } else {
        connection_serve(worker, connection);
    }
}

/* Serves one visit of the queue. */
static void fair_serve(struct worker *worker)
{
    struct fair_node *node;
    if (worker->fair.n_active > 1) {
        worker->contended_until_ns = clock_ns() + CONTENDED_NS;
    }
    while ((node = fair_next(&worker->fair)) != NULL) {
        char *at = (char *)node - offsetof(struct connection, fair);
        connection_serve(worker, (struct connection *)(void *)at);
    }
}

/*
 * Returns the first connection. The links of the list may be followed without the lock, because only the worker
 * removes connections, and new ones are put before the first.
 */
static struct connection *connections_first(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    struct connection *first = worker->connections;
    pthread_mutex_unlock(&worker->lock);
    return first;
}

/* Serves the connections that had more to do than one turn allows. */
static void again_serve(struct worker *worker)
{
    struct connection *connection = worker->n_again > 0 ? connections_first(worker) : NULL;
    while (worker->n_again > 0 && connection != NULL) {
        struct connection *next = connection->next;
        if (connection->again) {
            connection_ready(worker, connection);
        }
        connection = next;
    }
}

/*
 * Waits for events: for timeout_ms, or, if that is not 0 and connections gather, until the first of their deadlines.
 */
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

/* Serves the connections whose deadline for gathering has come. */
static void late_serve(struct worker *worker)
{
    uint64_t now_ns = worker->n_gathers > 0 ? clock_ns() : 0;
    /* Downwards, because serving a connection may remove it, and the last one then takes its place. */
    for (unsigned i = worker->n_gathers; i-- > 0;) {
        if (i < worker->n_gathers && worker->gathers[i]->gather_until_ns <= now_ns) {
            connection_ready(worker, worker->gathers[i]);
        }
    }
}

/* Serves the connections whose delay is over. */
static void delayed_serve(struct worker *worker)
{
    uint64_t now_ns = worker->delays.first != NULL ? clock_ns() : 0;
    struct connection *connection = delays_due(&worker->delays, now_ns);
    while (connection != NULL) {
        struct connection *next = connection->next_delayed;
        if (connection->delayed_until_ns > now_ns) {
            delays_set(&worker->delays, connection, true);
        } else {
            connection_ready(worker, connection);
        }
        connection = next;
    }
}

/* Waits for events and serves them. Returns how many there were. */
static int events_serve(struct worker *worker, int timeout_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int n = events_wait(worker, events, timeout_ms);
    for (int i = 0; i < n; i++) {
        struct connection *connection = events[i].data.ptr;
        if (connection == NULL) {
            worker->stopping = true;
        } else if (connection->delayed && (events[i].events & (EPOLLHUP | EPOLLERR)) != 0) {
            /* Nothing can be sent or received any more. Its requests are not taken before the delay is over. */
            connection_end(worker, connection);
        } else {
            connection_ready(worker, connection);
        }
    }
    late_serve(worker);
    delayed_serve(worker);
    return n;
}

static bool hot_serve(struct worker *worker)
{
    bool worked = false;
    /* Downwards, because serving a connection may remove it, and the last one then takes its place. */
    for (unsigned i = worker->n_hot; i-- > 0;) {
        if (i < worker->n_hot) {
            worked |= connection_serve(worker, worker->hot[i]);
        }
    }
    return worked;
}

/* Tells waiting.c how many requests were served. */
static void work_note(struct worker *worker, uint64_t now_ns)
{
    bool trial = worker->tried != NULL && gathering_is_tried(&worker->tried->gathering, now_ns);
    waiting_note(&worker->waiting, now_ns, requests_count(worker), trial);
}

/* Tries the hot connections until the time for spinning has passed without work. */
static void worker_spin(struct worker *worker)
{
    uint64_t worked_at_ns = clock_ns();
    for (unsigned round = 1; worker->n_hot > 0 && worker->n_again == 0 && !worker->stopping; round++) {
        if (!fair_is_empty(&worker->fair) || worked_at_ns < worker->contended_until_ns) {
            return;
        }
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
            /*
             * The kernel tends to put the thread that waits for the reply on this processor; that thread must not be
             * held up by the worker's spinning.
             */
            sched_yield();
        }
    }
}

/* Ends connections whose client has not chosen an export in time. */
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
    if (worker->n_again > 0 || !fair_is_empty(&worker->fair)) {
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
        int timeout_ms = delays_timeout_ms(&worker->delays, timeout_choose_ms(worker));
        bool gathers = worker->n_gathers > 0 || worker->delays.first != NULL;
        int n = events_serve(worker, timeout_ms);
        again_serve(worker);
        fair_serve(worker);
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

/* Starts the thread with all signals blocked, because the main thread takes them (signalfd). */
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

/* Whether waits of less than a millisecond are possible: epoll_pwait2() needs Linux 5.11 (epoll_wait(2)). */
static bool wait_is_fine(int epoll_fd)
{
    struct epoll_event event;
    const struct timespec now = {0};
    return epoll_pwait2(epoll_fd, &event, 1, &now, NULL) == 0;
}

int worker_start(struct worker *worker, const struct options *options, struct handshakes *handshakes)
{
    worker->handshakes = handshakes;
    fair_open(&worker->fair);
    waiting_open(&worker->waiting, options->poll_us, options->keep_awake == KEEP_AWAKE_AUTO);
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

int worker_adopt(struct worker *worker, const struct newcomer *newcomer, struct exports *exports,
                 enum handshakes_room *room)
{
    int fd = newcomer->fd;
    struct connection *connection = connection_new(fd, newcomer->peer, exports, &worker->counters);
    *room = HANDSHAKES_FREE;
    if (connection == NULL) {
        close(fd);
        return -ENOMEM;
    }
    *room = handshakes_enter(worker->handshakes, &connection->handshake, fd, newcomer->address);
    connection->gathering.always = worker->gathers_always;
    connection->interest = EPOLLOUT;
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = connection};
    atomic_fetch_add(&worker->n_connections, 1);
    atomic_fetch_add(&worker->n_handshaking, 1);
    /* Under the lock, because the worker may end the connection from its first event on: it has to find it listed. */
    pthread_mutex_lock(&worker->lock);
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        int rc = -errno;
        pthread_mutex_unlock(&worker->lock);
        atomic_fetch_sub(&worker->n_handshaking, 1);
        handshakes_leave(worker->handshakes, &connection->handshake);
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
