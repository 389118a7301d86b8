/* SPDX-License-Identifier: MIT */
/* What a channel says before it may ask for pages. */
#include "clock.h"
#include "donor.h"
#include "memserver/nbd/protocol.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define PAGE_CONTEXT  "x-ghostbox:page-"
#define CONTEXT_BYTES 3900

static char page_context_text[CONTEXT_BYTES + 1];
static pthread_once_t page_context_once = PTHREAD_ONCE_INIT;

static void make_page_context(void)
{
    memset(page_context_text, 'p', CONTEXT_BYTES);
    memcpy(page_context_text, PAGE_CONTEXT, sizeof(PAGE_CONTEXT) - 1);
}

/*
 * A name that no server knows, nearly as long as names may be (NBD: a string has at most 4096 bytes), so that each
 * negotiation carries as much to the donor as a page does: where short messages pass and long ones do not, because
 * somebody's MTU is wrong, no connection comes about. Servers have to ignore names that they do not know.
 */
static const char *page_context(void)
{
    pthread_once(&page_context_once, make_page_context);
    return page_context_text;
}

bool channel_create(struct channel *channel)
{
    channel->nbd = nbd_create();
    if (!channel->nbd)
        return false;
    nbd_set_full_info(channel->nbd, true);
    nbd_set_pread_initialize(channel->nbd, false);
#ifdef LIBNBD_HAVE_NBD_SET_REQUEST_EXTENDED_HEADERS
    /* libnbd 1.18 asks for 64-bit headers, and qemu-nbd 8.2 has them; wire.c speaks the 32-bit ones. */
    nbd_set_request_extended_headers(channel->nbd, false);
#endif
    if (channel->class == CHANNEL_DEMAND)
        nbd_add_meta_context(channel->nbd, NBD_DEMAND_CONTEXT);
    nbd_add_meta_context(channel->nbd, page_context());
    return true;
}

int channel_connect(struct channel *channel, int timeout_ms, int silent_ms, char *text, size_t text_bytes)
{
    struct nbd_handle *nbd = channel->nbd;
    uint64_t begun_ns = clock_ns();
    char uri[CHANNEL_URI_BYTES];
    int rc = nbd_aio_connect_uri(nbd, channel_uri(channel, uri));

    while (rc >= 0 && nbd_aio_is_connecting(nbd)) {
        int passed_ms = (int)((clock_ns() - begun_ns) / 1000000u);

        if (passed_ms >= silent_ms && pulse_machine_silent(channel)) {
            snprintf(text, text_bytes, "its machine does not answer");
            return -ETIMEDOUT;
        }
        if (passed_ms >= timeout_ms) {
            if (pulse_negotiation_is_stuck(channel))
                snprintf(text, text_bytes, PULSE_NO_PAGES);
            else
                snprintf(text, text_bytes, "it did not finish to connect within %d s", timeout_ms / 1000);
            return -ETIMEDOUT;
        }
        int left_ms = (passed_ms < silent_ms ? silent_ms : timeout_ms) - passed_ms;

        rc = nbd_poll(nbd, left_ms > 0 ? left_ms : 1);
    }
    if (rc >= 0 && nbd_aio_is_ready(nbd)) {
        channel_go_direct(channel);
        return 0;
    }
    int error = nbd_get_errno();

    snprintf(text, text_bytes, "%s", rc < 0 ? nbd_get_error() : "it closed the connection");
    return error ? -error : -EIO;
}
