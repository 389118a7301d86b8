/* SPDX-License-Identifier: MIT */
/*
 * Connections of shims: the transport of ../proto/proto.h. The handler knows what the messages mean. A shim that
 * breaks the protocol is disconnected, and nothing else happens. Evict thread only.
 */
#ifndef GHOSTBOX_PAGER_LINK_H
#define GHOSTBOX_PAGER_LINK_H

#include "pager.h"
#include "proto.h"

#define BATCH_PAGES  256u
#define DISCARDS_MAX 64u
#define LINKS_MAX    (REGIONS_MAX * 2)

/* A range that QEMU discards. */
struct discard {
    bool in_use;
    bool ready;      /* READY was sent; END has not come */
    bool forgetting; /* END has come, and the donors are being told; the pages from the cursor on have PAGE_F_IO */
    uint32_t seq;
    uint32_t first, n_pages; /* pool pages */
    uint32_t cursor;         /* pages before it are DISCARDING; while forgetting, donors were told to forget them */
};

enum link_state { LINK_FREE, LINK_HELLO, LINK_REGION, LINK_SERVING };

/* One connection of a shim, and what is under way on it. */
struct link {
    enum link_state state;
    int fd;
    int pidfd;
    pid_t pid;
    uint64_t opened_ns;
    bool resume;
    char comm[16];
    struct region *region;
    uint32_t zap_seq;
    uint32_t n_zapping; /* pages in the batch that is being zapped; 0: no zap is under way */
    uint32_t zapping[BATCH_PAGES];
    struct discard discards[DISCARDS_MAX];
    uint32_t n_discards;
};

/* Any message of a shim. */
union link_message {
    struct gb_header h;
    struct gb_hello hello;
    struct gb_region region;
    struct gb_done done;
    struct gb_range_msg range;
    uint8_t bytes[512];
};

struct link_handler {
    /* Called when a message with a valid header has come. The handler owns the descriptors (-1: none). */
    void (*message)(void *owner, struct link *link, const union link_message *message, int fds[3]);
    /* Called when the connection of a region is closed. Undoes what was begun on it; nothing can be sent any more. */
    void (*closed)(void *owner, struct link *link);
};

struct links {
    struct pager *pager;
    int epoll_fd; /* data.ptr is the link */
    const struct link_handler *handler;
    void *owner; /* of the handler */
    struct link list[LINKS_MAX];
};

/* Makes the socket to which shims connect. Returns 0 or -errno. */
int link_listen(struct pager *pager);
/* Accepts a connection, after epoll has reported the listening socket. */
void link_accept(struct links *links);
/* Receives one message and has it handled, after epoll has reported the connection. */
void link_readable(struct links *links, struct link *link);
/*
 * Sends a message, and waits up to a second if the socket is full. Returns 0, or -errno after it has shut the
 * connection down: the shim's last messages, which may say that it leaves, are still read before the connection is
 * closed.
 */
int link_send(struct link *link, const void *message, size_t bytes);
/* Sends the reason to the shim, logs it, and closes the connection. */
void link_reject(struct links *links, struct link *link, int error, const char *text);
/* Closes the connection. */
void link_close(struct links *links, struct link *link);
/* Closes the descriptors of a message. */
void link_close_fds(const int fds[3]);
/* Returns the connection that serves this region, or NULL. */
struct link *link_of(struct links *links, const struct region *region);
/* Returns the header of a message of `bytes` bytes. */
struct gb_header link_header(enum gb_msg_type type, uint32_t seq, size_t bytes);

#endif
