/* SPDX-License-Identifier: MIT */
#include "memserver/delays.h"

#include "memserver/clock.h"

void delays_set(struct delays *delays, struct connection *connection, bool delayed)
{
    if (delayed && (delays->until_ns == 0 || connection->delayed_until_ns < delays->until_ns)) {
        delays->until_ns = connection->delayed_until_ns;
    }
    if (delayed == connection->delayed) {
        return;
    }
    connection->delayed = delayed;
    if (!delayed) {
        *connection->delayed_link = connection->next_delayed;
        if (connection->next_delayed != NULL) {
            connection->next_delayed->delayed_link = connection->delayed_link;
        }
        return;
    }
    connection->next_delayed = delays->first;
    connection->delayed_link = &delays->first;
    delays->first = connection;
    if (connection->next_delayed != NULL) {
        connection->next_delayed->delayed_link = &connection->next_delayed;
    }
}

struct connection *delays_due(struct delays *delays, uint64_t now_ns)
{
    if (delays->until_ns == 0 || now_ns < delays->until_ns) {
        return NULL;
    }
    delays->until_ns = 0;
    return delays->first;
}

int delays_timeout_ms(const struct delays *delays, int timeout_ms)
{
    if (delays->until_ns == 0) {
        return timeout_ms;
    }
    uint64_t now_ns = clock_ns();
    int delay_ms = delays->until_ns > now_ns ? (int)((delays->until_ns - now_ns) / 1000000 + 1) : 0;
    return timeout_ms < 0 || delay_ms < timeout_ms ? delay_ms : timeout_ms;
}
