/* SPDX-License-Identifier: MIT */
/*
 * A hostile QEMU on the socket for shims, in this process and thread: up to three connections send what the input
 * says, and the input also says what the fault thread and the donors have just done. The evict thread's own functions
 * answer; userfaultfd, memfd and pagemap are real, the donor is never connected.
 *
 * Input: operations, see `enum operation`. Checked, in addition to what sanitizers check, after each of them: the
 * page table is right (check_pages()). At the end: when all connections are closed, no region is in use, and no page
 * is left.
 */
#include "tests/fuzz/drive.h"

#include "check.h"
#include "donor/donor_open.h"
#include "evict/discard.h"
#include "evict/drop.h"
#include "evict/reap.h"
#include "evict/writeback.h"
#include "evict/zap.h"
#include "log.h"
#include "page/reclaim_policy.h"
#include "regions/regions.h"
#include "session/session.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define N_PEERS      3u
#define REGION_PAGES 48u
#define POOL_PAGES   64u
#define REAPS_MAX    10u

enum operation {
    OP_CONNECT,
    OP_CLOSE,
    OP_HELLO,
    OP_REGION,
    OP_RAW,
    OP_BEGIN,  /* DISCARD_BEGIN */
    OP_END,    /* DISCARD_END of any range, or of the one that was begun last */
    OP_ZAPPED, /* ZAP_DONE */
    OP_BYE,
    OP_OTHER,    /* a message of any type with a good header */
    OP_TOUCH,    /* the fault thread maps a run of pages */
    OP_FETCH,    /* the fault thread begins or ends to fetch a page */
    OP_ZAP,      /* the evict thread zaps pages */
    OP_DROP,     /* the evict thread drops inactive pages */
    OP_IO,       /* a write or trim of a page begins or ends */
    OP_PROGRESS, /* the evict thread goes on with discards and leaving regions */
    OPS
};

struct peer {
    int fd; /* -1: the peer is not connected */
    struct link *link;
    uint32_t last_seq;
    struct gb_range last_range;
};

struct drive {
    const uint8_t *input;
    size_t left;
    struct pager *pager;
    struct evict_loop *loop;
    struct peer peers[N_PEERS];
    int uffd, memfd, pagemap, null;
    uint8_t *memory; /* REGION_PAGES pages of the memfd, registered with the userfaultfd */
};

static uint64_t take(struct drive *drive, unsigned n_bytes)
{
    uint64_t value = 0;

    for (; n_bytes > 0 && drive->left > 0; n_bytes--, drive->left--)
        value = value << 8 | *drive->input++;
    return value;
}

/* --- the pager's surroundings --- */

static int make_uffd(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM};

    assert(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0);
    return fd;
}

static void memory_make(struct drive *drive)
{
    drive->uffd = make_uffd();
    drive->memfd = memfd_create("memory-backend-memfd", MFD_CLOEXEC);
    drive->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    drive->null = open("/dev/null", O_RDWR | O_CLOEXEC);
    assert(drive->memfd >= 0 && drive->pagemap >= 0 && drive->null >= 0);
    int rc = ftruncate(drive->memfd, (off_t)REGION_PAGES * PAGE_BYTES);

    assert(rc == 0);
    drive->memory =
        mmap(NULL, (size_t)REGION_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, drive->memfd, 0);
    assert(drive->memory != MAP_FAILED);
    struct uffdio_register all = {
        .range = {(uint64_t)(uintptr_t)drive->memory, (uint64_t)REGION_PAGES * PAGE_BYTES},
        .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
    };

    rc = ioctl(drive->uffd, UFFDIO_REGISTER, &all);
    assert(rc == 0);
}

static void memory_free(struct drive *drive)
{
    munmap(drive->memory, (size_t)REGION_PAGES * PAGE_BYTES);
    close(drive->uffd);
    close(drive->memfd);
    close(drive->pagemap);
    close(drive->null);
}

/* Makes a pool of one donor, which is away and has room for all pages. */
static void pool_make(struct pool *pool)
{
    struct donor *donor = &pool->donors[0];

    pool->n_donors = 1;
    pool->replicas = 1;
    pool->extent_bytes = (uint64_t)POOL_PAGES * PAGE_BYTES;
    pool->extent_pages = POOL_PAGES;
    pool->n_extents = 1;
    pool->extents = calloc(1, sizeof(*pool->extents));
    donor->uri = strdup("nbd://donor.invalid/export");
    donor->host = strdup("donor.invalid");
    donor->identity = strdup("");
    donor->export_bytes = pool->extent_bytes;
    assert(pool->extents && donor->uri && donor->host && donor->identity);
    int rc = donor_cut(donor, pool->extent_bytes);

    assert(rc == 0);
    donor_inherit(donor);
    donor->slots[0] = SLOT_USED;
    copy_put(&pool->extents[0], 0, (struct copy){.state = COPY_CURRENT});
}

static void pager_make(struct drive *drive)
{
    static struct options options = {.replicas = 1};
    struct pager *pager = calloc(1, sizeof(*pager));
    struct evict_loop *loop = calloc(1, sizeof(*loop));

    assert(pager && loop);
    pager->options = &options;
    pthread_mutex_init(&pager->lock, NULL);
    pager->device_fd = drive->null; /* WELCOME sends it */
    pager->listen_fd = -1;
    pager->state.fd = -1;
    pager->fault_wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pager->evict_wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pool_make(&pager->pool);
    int rc = page_table_create(&pager->table, POOL_PAGES, false, NULL);

    assert(rc == 0);
    pager_set_cache(pager, (uint64_t)POOL_PAGES * PAGE_BYTES);
    loop->pager = loop->links.pager = pager;
    loop->links.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    loop->links.handler = &session_handler;
    loop->links.owner = loop;
    rc = writeback_init(loop);
    assert(rc == 0);
    drive->pager = pager;
    drive->loop = loop;
}

static void pager_free(struct drive *drive)
{
    writeback_destroy(drive->loop);
    close(drive->loop->links.epoll_fd);
    close(drive->pager->fault_wake_fd);
    close(drive->pager->evict_wake_fd);
    page_table_destroy(&drive->pager->table);
    pool_close(&drive->pager->pool);
    pthread_mutex_destroy(&drive->pager->lock);
    free(drive->loop);
    free(drive->pager);
}

/* --- the peers --- */

static struct peer *peer_of(struct drive *drive)
{
    return &drive->peers[take(drive, 1) % N_PEERS];
}

/* Whether the pager has not closed the peer's connection. */
static bool is_connected(const struct drive *drive, const struct peer *peer)
{
    return peer->fd >= 0 && peer->link->state != LINK_FREE &&
           (size_t)(peer->link - drive->loop->links.list) < N_PEERS;
}

static void peer_close(struct drive *drive, struct peer *peer)
{
    if (peer->fd < 0)
        return;
    close(peer->fd);
    if (peer->link->state != LINK_FREE)
        link_readable(&drive->loop->links, peer->link);
    peer->fd = -1;
}

/* Connects a peer as link_accept() does, without a listening socket. Each peer has a link of its own. */
static void peer_connect(struct drive *drive, struct peer *peer)
{
    int fds[2];

    peer_close(drive, peer);
    peer->link = &drive->loop->links.list[peer - drive->peers];
    if (peer->link->state != LINK_FREE) /* not all messages of the connection before were read */
        link_close(&drive->loop->links, peer->link);
    int rc = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds);

    assert(rc == 0);
    peer->fd = fds[0];
    *peer->link = (struct link){
        .state = LINK_HELLO, .fd = fds[1], .pid = getpid(), .pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0)};
}

/* Reads what the pager has sent, so that it never waits for the peer. */
static void peer_read(struct peer *peer)
{
    uint8_t bytes[8192], control[256];
    struct iovec iov = {bytes, sizeof(bytes)};

    for (;;) {
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};

        if (recvmsg(peer->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0)
            return;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            int fd;

            memcpy(&fd, CMSG_DATA(c), sizeof(fd));
            close(fd);
        }
    }
}

static void peer_send(struct drive *drive, struct peer *peer, const void *bytes, size_t length, const int *fds,
                      size_t n_fds)
{
    union {
        char bytes[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov = {(void *)(uintptr_t)bytes, length};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};

    if (!is_connected(drive, peer) || length == 0)
        return;
    if (n_fds > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);

        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
    }
    if (sendmsg(peer->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)length)
        link_readable(&drive->loop->links, peer->link);
    peer_read(peer);
}

/* Returns an offset that may be wrong: mostly a page boundary in or near the region. */
static uint64_t number(struct drive *drive)
{
    uint8_t kind = (uint8_t)take(drive, 1);

    if (kind < 0xc0)
        return (uint64_t)(kind % (REGION_PAGES + 2)) * PAGE_BYTES;
    if (kind < 0xe0)
        return UINT64_MAX - (uint64_t)(kind - 0xc0) * (PAGE_BYTES / 2) + 1;
    return take(drive, 8);
}

static void say_hello(struct drive *drive, struct peer *peer)
{
    uint8_t flags = (uint8_t)take(drive, 1);
    struct gb_hello hello = {.h = link_header(GB_MSG_HELLO, flags, sizeof(hello)), .flags = flags & 1};

    memset(hello.comm, flags, sizeof(hello.comm));
    peer_send(drive, peer, &hello, sizeof(hello), NULL, 0);
}

static void say_region(struct drive *drive, struct peer *peer)
{
    uint8_t flags = (uint8_t)take(drive, 1);
    int all[4] = {drive->uffd, drive->memfd, drive->pagemap, drive->null}, fds[3];
    struct gb_region region = {
        .h = link_header(GB_MSG_REGION, flags, sizeof(region)),
        .base = (uint64_t)(uintptr_t)drive->memory,
        .length = (uint64_t)REGION_PAGES * PAGE_BYTES,
        .page_bytes = PAGE_BYTES,
    };
    uint8_t mix = flags & 1 ? (uint8_t)take(drive, 1) : 0x24; /* uffd, memfd, pagemap */

    for (int i = 0; i < 3; i++)
        fds[i] = all[mix >> (2 * i) & 3];
    if (flags & 2) {
        region.length = number(drive);
        region.memfd_offset = number(drive);
        region.base += region.memfd_offset;
    }
    if (flags & 4)
        region.base = number(drive);
    if (flags & 8)
        region.page_bytes = number(drive);
    peer_send(drive, peer, &region, sizeof(region), fds, flags & 16 ? (flags >> 5) % 4 : 3);
}

static void say_range(struct drive *drive, struct peer *peer, enum gb_msg_type type)
{
    uint8_t flags = (uint8_t)take(drive, 1);
    struct gb_range_msg message = {.h = link_header(type, flags >> 2, sizeof(message))};

    if (type == GB_MSG_DISCARD_END && flags & 1) {
        message.h.seq = peer->last_seq;
        message.range = peer->last_range;
    } else {
        message.range = (struct gb_range){number(drive), number(drive)};
        peer->last_seq = message.h.seq;
        peer->last_range = message.range;
    }
    message.error = flags & 2 ? EIO : 0;
    /* The peer may say that a hole is punched that is not; now and then the hole is punched. */
    if (type == GB_MSG_DISCARD_END && !message.error && flags & 4 && message.range.length <= UINT32_MAX)
        (void)!fallocate(drive->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)message.range.offset,
                         (off_t)message.range.length);
    peer_send(drive, peer, &message, sizeof(message), NULL, 0);
}

static void say_zapped(struct drive *drive, struct peer *peer)
{
    uint8_t flags = (uint8_t)take(drive, 1);
    uint32_t seq = peer->link && !(flags & 1) ? peer->link->zap_seq : flags;
    struct gb_done done = {.h = link_header(GB_MSG_ZAP_DONE, seq, sizeof(done)), .error = flags & 2 ? EPERM : 0};

    peer_send(drive, peer, &done, sizeof(done), NULL, 0);
}

static void say_other(struct drive *drive, struct peer *peer, bool bye)
{
    uint8_t flags = (uint8_t)take(drive, 1);
    struct gb_header header = link_header(bye ? GB_MSG_BYE : (enum gb_msg_type)(flags % 20), flags, sizeof(header));

    header.version = (uint16_t)(header.version + (!bye && flags & 0x80));
    peer_send(drive, peer, &header, sizeof(header), NULL, 0);
}

static void say_raw(struct drive *drive, struct peer *peer)
{
    uint8_t bytes[600] = {0};
    size_t length = take(drive, 2) % sizeof(bytes);

    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)take(drive, 1);
    peer_send(drive, peer, bytes, length, NULL, 0);
}

/* --- the other parts of the pager --- */

/* Returns a page of a region, or PAGE_NONE. */
static uint32_t some_page(struct drive *drive)
{
    uint32_t page = (uint32_t)take(drive, 1) % POOL_PAGES;
    const struct region *region = pager_region_of(drive->pager, page);

    return region && !region->leaving ? page : PAGE_NONE;
}

/* Does what serve.c and fetch.c do, without the ioctls. */
static void use_page(struct drive *drive, uint32_t page, bool write)
{
    struct page_table *table = &drive->pager->table;
    static const uint8_t bytes[PAGE_BYTES] = {1};
    struct page *p = &table->pages[page];

    if (p->state == PAGE_ABSENT)
        table->counts.present++;
    else if (p->state == PAGE_INACTIVE)
        page_list_remove(table, reclaim_inactive(table, page), page);
    else if (p->state == PAGE_DISCARDING || p->state == PAGE_DROPPING)
        p->flags |= PAGE_F_WANTED;
    if (p->state != PAGE_ABSENT && p->state != PAGE_INACTIVE && p->state != PAGE_ZAPPING && p->state != PAGE_FETCHING)
        return;
    page_set_state(table, page, PAGE_MAPPING);
    (void)!region_write(pager_region_of(drive->pager, page), page, bytes, 1);
    p->flags &= (uint8_t)~PAGE_F_WANTED;
    page_set_dirty(table, page, write || (p->flags & PAGE_F_DIRTY));
    page_set_state(table, page, PAGE_RESIDENT);
    page_list_push(table, reclaim_mapped(table, page), page);
}

static void touch(struct drive *drive)
{
    uint32_t page = some_page(drive), n = (uint32_t)take(drive, 1);

    for (uint32_t i = 0; page != PAGE_NONE && i <= n % 16 && page + i < POOL_PAGES; i++)
        if (pager_region_of(drive->pager, page + i) && !pager_region_of(drive->pager, page + i)->leaving)
            use_page(drive, page + i, n & 16);
}

static void fetch(struct drive *drive)
{
    uint32_t page = some_page(drive);

    if (page == PAGE_NONE)
        return;
    if (drive->pager->table.pages[page].state == PAGE_FETCHING) {
        use_page(drive, page, false);
    } else if (drive->pager->table.pages[page].state == PAGE_ABSENT) {
        drive->pager->table.counts.present++;
        page_set_state(&drive->pager->table, page, PAGE_FETCHING);
    }
}

static void drop(struct drive *drive)
{
    struct page_table *table = &drive->pager->table;

    pager_lock(drive->pager);
    for (uint32_t n = (uint32_t)take(drive, 1) % 16; n > 0; n--) {
        uint32_t page = table->inactive.head;

        if (page == PAGE_NONE || (table->pages[page].flags & (PAGE_F_DIRTY | PAGE_F_IO)))
            break;
        page_list_remove(table, &table->inactive, page);
        drop_add(drive->loop, page);
    }
    pager_unlock(drive->pager);
    drop_flush(drive->loop);
}

static void io(struct drive *drive)
{
    uint32_t page = some_page(drive);
    struct page *p = &drive->pager->table.pages[page == PAGE_NONE ? 0 : page];

    if (page == PAGE_NONE)
        return;
    if (p->flags & PAGE_F_IO)
        p->flags &= (uint8_t)~PAGE_F_IO;
    else if (p->state == PAGE_ABSENT || p->state == PAGE_RESIDENT || p->state == PAGE_INACTIVE)
        p->flags |= PAGE_F_IO;
}

/* Gives up what is being fetched for leaving regions, as the fault thread does. */
static void let_go(struct drive *drive)
{
    struct page_table *table = &drive->pager->table;

    for (uint32_t page = 0; page < POOL_PAGES; page++) {
        const struct region *region = pager_region_of(drive->pager, page);

        if (region && region->leaving && table->pages[page].state == PAGE_FETCHING) {
            table->counts.present--;
            table->pages[page].flags &= (uint8_t)~PAGE_F_WANTED;
            page_set_state(table, page, PAGE_ABSENT);
        }
    }
}

static void progress(struct drive *drive)
{
    discard_progress(drive->loop);
    pager_lock(drive->pager);
    let_go(drive);
    pager_unlock(drive->pager);
    regions_reap(drive->loop);
}

static void change_pages(struct drive *drive, enum operation op)
{
    pager_lock(drive->pager);
    if (op == OP_TOUCH)
        touch(drive);
    else if (op == OP_FETCH)
        fetch(drive);
    else
        io(drive);
    pager_unlock(drive->pager);
}

static void step(struct drive *drive)
{
    enum operation op = (enum operation)(take(drive, 1) % OPS);
    struct peer *peer = op <= OP_OTHER ? peer_of(drive) : NULL;

    switch (op) {
    case OP_CONNECT:
        peer_connect(drive, peer);
        break;
    case OP_CLOSE:
        peer_close(drive, peer);
        break;
    case OP_HELLO:
        say_hello(drive, peer);
        break;
    case OP_REGION:
        say_region(drive, peer);
        break;
    case OP_RAW:
        say_raw(drive, peer);
        break;
    case OP_BEGIN:
        say_range(drive, peer, GB_MSG_DISCARD_BEGIN);
        break;
    case OP_END:
        say_range(drive, peer, GB_MSG_DISCARD_END);
        break;
    case OP_ZAPPED:
        say_zapped(drive, peer);
        break;
    case OP_BYE:
    case OP_OTHER:
        say_other(drive, peer, op == OP_BYE);
        break;
    case OP_ZAP:
        zap_start(drive->loop, (uint32_t)take(drive, 1));
        break;
    case OP_DROP:
        drop(drive);
        break;
    case OP_TOUCH:
    case OP_FETCH:
    case OP_IO:
        change_pages(drive, op);
        break;
    case OP_PROGRESS:
        progress(drive);
        break;
    case OPS:
        break;
    }
    for (uint32_t i = 0; i < N_PEERS; i++)
        if (drive->peers[i].fd >= 0)
            peer_read(&drive->peers[i]);
    check_pages(drive->pager);
}

/* Ends all processes and all work that is under way. */
static void end(struct drive *drive)
{
    struct pager *pager = drive->pager;

    for (uint32_t i = 0; i < N_PEERS; i++)
        peer_close(drive, &drive->peers[i]);
    for (uint32_t page = 0; page < POOL_PAGES; page++)
        pager->table.pages[page].flags &= (uint8_t)~PAGE_F_IO;
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        if (pager->regions[i].in_use && !pager->regions[i].leaving)
            region_end(pager, &pager->regions[i]);
    for (uint32_t i = 0; i < REAPS_MAX; i++)
        progress(drive);
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        assert(!pager->regions[i].in_use);
    for (uint32_t i = 0; i < LINKS_MAX; i++)
        assert(drive->loop->links.list[i].state == LINK_FREE);
    check_pages(drive->pager);
    assert(pager->table.counts.present == 0);
}

void drive_input(const uint8_t *data, size_t size)
{
    static bool quiet;
    struct drive drive = {.input = data, .left = size};

    if (!quiet) /* each call would open the file anew, until no descriptor is left after some ten thousand inputs */
        quiet = log_open("link-fuzz", "/dev/null", LOG_ERROR) == 0;
    memory_make(&drive);
    pager_make(&drive);
    for (uint32_t i = 0; i < N_PEERS; i++)
        drive.peers[i].fd = -1;
    while (drive.left > 0)
        step(&drive);
    end(&drive);
    pager_free(&drive);
    memory_free(&drive);
}
