/* SPDX-License-Identifier: MIT */
/*
 * NBD as it is on the wire (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md), for the memory
 * server, the pager, the benchmarks and the fuzz targets. All numbers are big endian. Names are those of the
 * specification, so that they can be searched for there.
 */
#ifndef GHOSTBOX_NBD_PROTOCOL_H
#define GHOSTBOX_NBD_PROTOCOL_H

#include <assert.h>
#include <stdint.h>

#define NBD_PACKED __attribute__((packed))

/* --- handshake --- */

#define NBD_MAGIC           UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC    UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_OPT_REPLY_MAGIC UINT64_C(0x0003e889045565a9)

#define NBD_FLAG_FIXED_NEWSTYLE 0x0001u
#define NBD_FLAG_NO_ZEROES      0x0002u

#define NBD_FLAG_C_FIXED_NEWSTYLE 0x00000001u
#define NBD_FLAG_C_NO_ZEROES      0x00000002u

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};

#define NBD_REP_ACK          1u
#define NBD_REP_SERVER       2u
#define NBD_REP_INFO         3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_ERR(value)   ((UINT32_C(1) << 31) + (value))
#define NBD_REP_ERR_UNSUP    NBD_REP_ERR(1)
#define NBD_REP_ERR_POLICY   NBD_REP_ERR(2)
#define NBD_REP_ERR_INVALID  NBD_REP_ERR(3)
#define NBD_REP_ERR_TLS_REQD NBD_REP_ERR(5)
#define NBD_REP_ERR_UNKNOWN  NBD_REP_ERR(6)
#define NBD_REP_ERR_TOO_BIG  NBD_REP_ERR(9)

#define NBD_INFO_EXPORT      0u
#define NBD_INFO_NAME        1u
#define NBD_INFO_DESCRIPTION 2u
#define NBD_INFO_BLOCK_SIZE  3u

/* "A string … MUST NOT be longer than 4096 bytes". */
#define NBD_MAX_STRING 4096u

/* The ids of the metadata contexts in our memory server's answer to SET_META_CONTEXT. */
#define NBD_ALLOCATION_CONTEXT_ID 1u
#define NBD_DEMAND_CONTEXT_ID     2u
/*
 * A metadata context of our own, without a status to ask for. A client that sets it says that a virtual CPU stands
 * still until each of its requests is answered. Our memory server then waits for requests in the quickest way
 * (waiting.h); other servers ignore the context.
 */
#define NBD_DEMAND_CONTEXT "x-ghostbox:demand"

struct nbd_greeting {
    uint64_t magic;
    uint64_t option_magic;
    uint16_t handshake_flags;
} NBD_PACKED;
static_assert(sizeof(struct nbd_greeting) == 18, "greeting");

struct nbd_option_header {
    uint64_t magic;
    uint32_t option;
    uint32_t length;
} NBD_PACKED;
static_assert(sizeof(struct nbd_option_header) == 16, "option");

struct nbd_option_reply {
    uint64_t magic;
    uint32_t option;
    uint32_t type;
    uint32_t length;
} NBD_PACKED;
static_assert(sizeof(struct nbd_option_reply) == 20, "option reply");

/* The answer to NBD_OPT_EXPORT_NAME; the zeroes are left out if the client has set NBD_FLAG_C_NO_ZEROES. */
struct nbd_export_name_reply {
    uint64_t size_bytes;
    uint16_t transmission_flags;
    uint8_t zeroes[124];
} NBD_PACKED;
static_assert(sizeof(struct nbd_export_name_reply) == 134, "export name reply");

struct nbd_info_export {
    uint16_t type;
    uint64_t size_bytes;
    uint16_t transmission_flags;
} NBD_PACKED;
static_assert(sizeof(struct nbd_info_export) == 12, "info export");

struct nbd_info_block_size {
    uint16_t type;
    uint32_t minimum_bytes;
    uint32_t preferred_bytes;
    uint32_t maximum_bytes;
} NBD_PACKED;
static_assert(sizeof(struct nbd_info_block_size) == 14, "info block size");

/* --- transmission --- */

#define NBD_REQUEST_MAGIC          UINT32_C(0x25609513)
#define NBD_SIMPLE_REPLY_MAGIC     UINT32_C(0x67446698)
#define NBD_STRUCTURED_REPLY_MAGIC UINT32_C(0x668e33ef)

#define NBD_FLAG_HAS_FLAGS         (1u << 0)
#define NBD_FLAG_READ_ONLY         (1u << 1)
#define NBD_FLAG_SEND_FLUSH        (1u << 2)
#define NBD_FLAG_SEND_FUA          (1u << 3)
#define NBD_FLAG_SEND_TRIM         (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES (1u << 6)
#define NBD_FLAG_SEND_DF           (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN    (1u << 8)
#define NBD_FLAG_SEND_CACHE        (1u << 10)
#define NBD_FLAG_SEND_FAST_ZERO    (1u << 11)

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA       (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE   (1u << 1)
#define NBD_CMD_FLAG_DF        (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE   (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO (1u << 4)

/* Errors on the wire. Their numbers are the specification's, whatever numbers the system has. */
enum nbd_error {
    NBD_SUCCESS = 0,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_ENOTSUP = 95,
};

#define NBD_REPLY_FLAG_DONE         1u
#define NBD_REPLY_TYPE_NONE         0u
#define NBD_REPLY_TYPE_OFFSET_DATA  1u
#define NBD_REPLY_TYPE_OFFSET_HOLE  2u
#define NBD_REPLY_TYPE_BLOCK_STATUS 5u
#define NBD_REPLY_TYPE_IS_ERROR     (1u << 15) /* each type of an error has this bit */
#define NBD_REPLY_TYPE_ERROR        (NBD_REPLY_TYPE_IS_ERROR + 1)

#define NBD_STATE_HOLE (1u << 0)
#define NBD_STATE_ZERO (1u << 1)

struct nbd_request {
    uint32_t magic;
    uint16_t flags;
    uint16_t command;
    uint64_t cookie;
    uint64_t offset;
    uint32_t length;
} NBD_PACKED;
static_assert(sizeof(struct nbd_request) == 28, "request");

struct nbd_simple_reply {
    uint32_t magic;
    uint32_t error;
    uint64_t cookie;
} NBD_PACKED;
static_assert(sizeof(struct nbd_simple_reply) == 16, "simple reply");

struct nbd_chunk {
    uint32_t magic;
    uint16_t flags;
    uint16_t type;
    uint64_t cookie;
    uint32_t length;
} NBD_PACKED;
static_assert(sizeof(struct nbd_chunk) == 20, "chunk");

/* The head of a chunk with data, which follow it. */
struct nbd_chunk_data {
    struct nbd_chunk head;
    uint64_t offset;
} NBD_PACKED;
static_assert(sizeof(struct nbd_chunk_data) == 28, "data chunk");

struct nbd_chunk_hole {
    struct nbd_chunk head;
    uint64_t offset;
    uint32_t hole_bytes;
} NBD_PACKED;
static_assert(sizeof(struct nbd_chunk_hole) == 32, "hole chunk");

struct nbd_chunk_error {
    struct nbd_chunk head;
    uint32_t error;
    uint16_t message_bytes;
} NBD_PACKED;
static_assert(sizeof(struct nbd_chunk_error) == 26, "error chunk");

struct nbd_extent {
    uint32_t length;
    uint32_t flags;
} NBD_PACKED;
static_assert(sizeof(struct nbd_extent) == 8, "extent");

/* The head of a chunk with the status of extents, which follow it. */
struct nbd_chunk_status {
    struct nbd_chunk head;
    uint32_t context_id;
} NBD_PACKED;
static_assert(sizeof(struct nbd_chunk_status) == 24, "block status chunk");

#endif
