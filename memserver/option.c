/* SPDX-License-Identifier: MIT */
#include "memserver/option.h"

#include "common/log.h"
#include "common/nbd_protocol.h"

#include <endian.h>
#include <string.h>

const uint8_t *option_bytes(struct option *option, uint32_t bytes)
{
    if (option->bad || bytes > option->left) {
        option->bad = true;
        return NULL;
    }
    const uint8_t *data = option->data;
    option->data += bytes;
    option->left -= bytes;
    return data;
}

uint16_t option_u16(struct option *option)
{
    uint16_t value = 0;
    const uint8_t *data = option_bytes(option, sizeof(value));
    if (data != NULL) {
        memcpy(&value, data, sizeof(value));
    }
    return be16toh(value);
}

uint32_t option_u32(struct option *option)
{
    uint32_t value = 0;
    const uint8_t *data = option_bytes(option, sizeof(value));
    if (data != NULL) {
        memcpy(&value, data, sizeof(value));
    }
    return be32toh(value);
}

void reply_head(void *at, uint32_t option, uint32_t type, uint32_t length)
{
    struct nbd_option_reply head = {.magic = htobe64(NBD_OPT_REPLY_MAGIC),
                                    .option = htobe32(option),
                                    .type = htobe32(type),
                                    .length = htobe32(length)};
    memcpy(at, &head, sizeof(head));
}

uint8_t *reply_add(struct connection *connection, uint32_t option, uint32_t type, uint32_t length)
{
    uint8_t *at = replies_header(&connection->replies, (uint32_t)sizeof(struct nbd_option_reply) + length);
    reply_head(at, option, type, length);
    return at + sizeof(struct nbd_option_reply);
}

void reply_ack(struct connection *connection, uint32_t option)
{
    reply_add(connection, option, NBD_REP_ACK, 0);
}

void reply_refuse(struct connection *connection, uint32_t option, uint32_t type, const char *message)
{
    uint32_t length = (uint32_t)strlen(message);
    memcpy(reply_add(connection, option, type, length), message, length);
    log_debug("%s: option %u refused: %s", connection->peer, option, message);
}
