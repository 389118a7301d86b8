/* SPDX-License-Identifier: MIT */
/*
 * The protocol between the shim inside QEMU and the pager.
 *
 * Transport: one SOCK_SEQPACKET Unix socket for each memory region; one message a packet, in host byte order (both
 * ends are on the same machine and built from the same tree; `version` is checked first). Descriptors travel as
 * SCM_RIGHTS with the messages named below.
 *
 *   shim                                pager
 *   HELLO                        ──►
 *                                ◄──    WELCOME + [/dev/userfaultfd]      or REJECT (text), then close
 *   REGION + [uffd, memfd, pagemap] ─►
 *                                ◄──    REGION_OK                         or REJECT (text), then close
 *   … from here on the pager serves the memory …
 *                                ◄──    ZAP (ranges)      the shim's thread: madvise(MADV_DONTNEED) on each
 *   ZAP_DONE                     ──►
 *   DISCARD_BEGIN                ──►    QEMU is about to punch a hole; the calling thread waits
 *                                ◄──    DISCARD_READY     no page of the range is in flight, faults on it are held
 *   DISCARD_END                  ──►    the hole is punched (or error != 0: it was not)
 *                                ◄──    DISCARD_DONE      the page map has it; faults go on, and the caller returns
 *
 *   BYE                          ──►    the region is unmapped: the pager drops its pages
 *                                ◄──    BYE_DONE          a pager that takes over would know it, too; then close
 *
 * PIN and UNPIN are reserved for device passthrough: they make a range resident and exempt from eviction until UNPIN.
 * Neither end uses them today.
 *
 * If the connection breaks, the shim keeps its own copy of the userfaultfd, so each access to an absent page waits
 * (and never reads zeroes). The shim connects again with the flag GB_HELLO_RESUME and the same REGION. A
 * DISCARD_READY is valid on its own connection only: after REGION the pager looks at the memfd, and no hole may be
 * punched because of an earlier READY. The shim begins a discard that had no DISCARD_DONE again, and sends a BYE that
 * had no BYE_DONE again after it has resumed; a pager that rejects the region with ESTALE has no pages of it.
 */
#ifndef GHOSTBOX_PROTO_H
#define GHOSTBOX_PROTO_H

#include <assert.h>
#include <stdint.h>

#define GB_PROTO_MAGIC      0x47424f58u /* "GBOX" */
#define GB_PROTO_VERSION    2u
#define GB_PROTO_MAX_RANGES 256u
#define GB_PROTO_TEXT_BYTES 240u
#define GB_SOCKET_ENV       "GHOSTBOX_PAGER_SOCKET"
#define GB_MEMFD_LINK       "/memfd:memory-backend-memfd (deleted)"

enum gb_msg_type {
    GB_MSG_HELLO = 1,
    GB_MSG_WELCOME,
    GB_MSG_REJECT,
    GB_MSG_REGION,
    GB_MSG_REGION_OK,
    GB_MSG_ZAP,
    GB_MSG_ZAP_DONE,
    GB_MSG_DISCARD_BEGIN,
    GB_MSG_DISCARD_READY,
    GB_MSG_DISCARD_END,
    GB_MSG_PIN,
    GB_MSG_PIN_DONE,
    GB_MSG_UNPIN,
    GB_MSG_UNPIN_DONE,
    GB_MSG_BYE, /* only a header: the region is unmapped (memory unplugged); the process lives on */
    GB_MSG_DISCARD_DONE,
    GB_MSG_BYE_DONE, /* only a header */
    GB_MSG_TYPES     /* count, keep last */
};

enum gb_hello_flags {
    GB_HELLO_RESUME =
        1u << 0, /* an earlier connection served this region; if a pager has died, its page map is needed */
};

struct gb_header {
    uint32_t magic;
    uint16_t version;
    uint16_t type;  /* enum gb_msg_type */
    uint32_t seq;   /* a reply has the seq of the message that it answers */
    uint32_t bytes; /* of the whole message, header included */
};
static_assert(sizeof(struct gb_header) == 16, "wire layout");

struct gb_hello {
    struct gb_header h;
    uint32_t flags; /* enum gb_hello_flags */
    uint32_t pid;   /* the process id in the shim's own view; the pager uses SO_PEERCRED instead */
    char comm[16];  /* NUL-terminated */
};
static_assert(sizeof(struct gb_hello) == 40, "wire layout");

struct gb_welcome {
    struct gb_header h;
    uint64_t uffd_features;  /* for UFFDIO_API */
    uint64_t register_modes; /* for UFFDIO_REGISTER */
};
static_assert(sizeof(struct gb_welcome) == 32, "wire layout");

struct gb_reject {
    struct gb_header h;
    int32_t error; /* errno value */
    uint32_t reserved;
    char text[GB_PROTO_TEXT_BYTES]; /* NUL-terminated, for people */
};
static_assert(sizeof(struct gb_reject) == 264, "wire layout");

struct gb_region {
    struct gb_header h;
    uint64_t base;         /* address of the mapping in the shim's process */
    uint64_t length;       /* bytes, a multiple of page_bytes */
    uint64_t memfd_offset; /* of the mapping's first byte in the memfd */
    uint64_t page_bytes;   /* 4096 */
    uint64_t ioctls;       /* which ioctls are possible, as UFFDIO_REGISTER has said */
};
static_assert(sizeof(struct gb_region) == 56, "wire layout");

struct gb_region_ok {
    struct gb_header h;
    uint32_t region_id;
    uint32_t reserved;
};
static_assert(sizeof(struct gb_region_ok) == 24, "wire layout");

struct gb_range {
    uint64_t offset; /* bytes from the region's base, page aligned */
    uint64_t length; /* bytes, page aligned, not 0 */
};

struct gb_zap {
    struct gb_header h;
    uint32_t n_ranges; /* 1 … GB_PROTO_MAX_RANGES; the message has only so many ranges */
    uint32_t reserved;
    struct gb_range ranges[GB_PROTO_MAX_RANGES];
};
#define GB_ZAP_BYTES(n) (24u + (uint32_t)(n)*16u)
static_assert(sizeof(struct gb_zap) == GB_ZAP_BYTES(GB_PROTO_MAX_RANGES), "wire layout");

/* The body of ZAP_DONE, DISCARD_READY, DISCARD_DONE, PIN_DONE and UNPIN_DONE. */
struct gb_done {
    struct gb_header h;
    int32_t error; /* 0 or errno */
    uint32_t reserved;
};
static_assert(sizeof(struct gb_done) == 24, "wire layout");

/* The body of DISCARD_BEGIN, DISCARD_END, PIN and UNPIN. DISCARD_END repeats the seq and range of its BEGIN. */
struct gb_range_msg {
    struct gb_header h;
    struct gb_range range;
    int32_t error; /* in DISCARD_END: errno of the real call; 0: the hole is punched */
    uint32_t reserved;
};
static_assert(sizeof(struct gb_range_msg) == 40, "wire layout");

#endif
