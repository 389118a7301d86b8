/* SPDX-License-Identifier: MIT */
#include "donor/negotiate.h"

#include "base/clock.h"
#include "common/nbd_protocol.h"
#include "donor/address.h"
#include "donor/nbds_uri.h"
#include "donor/tcp_state.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define WRITER        "?writer"
#define WRITER_SUFFIX "%3Fwriter" /* WRITER as it is written in a URI's path */
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
 * Returns the name of a metadata context that no server knows, nearly as long as names may be (NBD: a string has at
 * most 4096 bytes). With it each negotiation sends as much to the donor as a page, so that the negotiation fails if
 * short messages pass and long ones do not, because an MTU on the path is wrong. Servers have to ignore names that
 * they do not know.
 */
static const char *page_context(void)
{
    pthread_once(&page_context_once, make_page_context);
    return page_context_text;
}

/* Whether the channel asks to be the export's only writer. */
static bool is_writer(const struct channel *channel)
{
    return channel->class == CHANNEL_WRITEBACK && donor_fences(channel->donor);
}

const char *channel_uri(const struct channel *channel, char uri[CHANNEL_URI_BYTES])
{
    const struct donor *donor = channel->donor;
    char plain[CHANNEL_URI_BYTES];

    if (*channel->address)
        address_put(donor->uri, channel->address, plain, sizeof(plain));
    else
        snprintf(plain, sizeof(plain), "%s", donor->uri);
    int path_length = (int)strcspn(plain, "?#");

    snprintf(uri, CHANNEL_URI_BYTES, "%.*s%s%s", path_length, plain, is_writer(channel) ? WRITER_SUFFIX : "",
             plain + path_length);
    return uri;
}

static int nbd_make(struct channel *channel, char *text, size_t text_bytes)
{
    channel->nbd = nbd_create();
    if (!channel->nbd) {
        snprintf(text, text_bytes, NO_MEMORY);
        return -ENOMEM;
    }
    nbd_set_full_info(channel->nbd, true);
    nbd_set_pread_initialize(channel->nbd, false);
#ifdef LIBNBD_HAVE_NBD_SET_REQUEST_EXTENDED_HEADERS
    /* libnbd 1.18 asks for 64-bit headers, which qemu-nbd 8.2 has; wire.c knows the 32-bit ones only. */
    nbd_set_request_extended_headers(channel->nbd, false);
#endif
    if (channel->class == CHANNEL_DEMAND)
        nbd_add_meta_context(channel->nbd, NBD_DEMAND_CONTEXT);
    nbd_add_meta_context(channel->nbd, page_context());
    return 0;
}

/* Asks the resolver once more if the donor's name had no address so far. Its error is then the reason for people. */
static int address_want(struct channel *channel, char *text, size_t text_bytes)
{
    struct addresses found;
    const char *why = *channel->address ? NULL : address_look_up(channel->donor->uri, &found);

    if (why) {
        snprintf(text, text_bytes, "its name has no address: %s", why);
        return -EHOSTUNREACH;
    }
    if (!*channel->address)
        memcpy(channel->address, found.text[0], sizeof(channel->address));
    return 0;
}

static int secure_make(struct channel *channel, char *text, size_t text_bytes)
{
    struct donor *donor = channel->donor;
    struct nbds_uri parts;
    struct psk psk = {0};
    char export[NBDS_EXPORT_BYTES + sizeof(WRITER)];
    const char *fault = nbds_uri_read(&parts, donor->uri);

    if (fault) {
        snprintf(text, text_bytes, "its URI %s", fault);
        return -EINVAL;
    }
    int rc = address_want(channel, text, text_bytes);

    if (rc == 0 && !donor->secret) {
        snprintf(text, text_bytes, NO_MEMORY);
        rc = -ENOMEM;
    }
    rc = rc < 0 ? rc : secret_get(donor->secret, &psk, text, text_bytes);
    if (rc < 0)
        return rc;
    snprintf(export, sizeof(export), "%s%s", parts.export, is_writer(channel) ? WRITER : "");
    struct secure_wishes wishes = {.address = channel->address,
                                   .export = export,
                                   .identity = parts.identity,
                                   .psk = &psk,
                                   .contexts = {page_context(), NULL}};

    if (channel->class == CHANNEL_DEMAND)
        wishes.contexts[1] = NBD_DEMAND_CONTEXT;
    channel->secure = secure_new(&wishes);
    psk_wipe(&psk);
    if (!channel->secure)
        snprintf(text, text_bytes, NO_MEMORY);
    return channel->secure ? 0 : -ENOMEM;
}

int channel_create(struct channel *channel, char *text, size_t text_bytes)
{
    return uri_is_nbds(channel->donor->uri) ? secure_make(channel, text, text_bytes)
                                            : nbd_make(channel, text, text_bytes);
}

void channel_drop(struct channel *channel)
{
    secure_free(channel->secure);
    channel->secure = NULL;
    if (channel->nbd)
        nbd_close(channel->nbd);
    channel->nbd = NULL;
}

int channel_step(struct channel *channel)
{
    int rc = secure_step(channel->secure);

    if (rc < 0 && rc != -EAGAIN && secure_key_failed(channel->secure))
        secret_ask(channel->donor->secret);
    return rc;
}

/* Lets libnbd go on with its negotiation, and waits for wait_ms at most. Returns as channel_step(). */
static int nbd_step(struct channel *channel, int wait_ms, char *text, size_t text_bytes)
{
    int rc = nbd_poll(channel->nbd, wait_ms);

    if (rc >= 0 && nbd_aio_is_connecting(channel->nbd))
        return -EAGAIN;
    if (rc >= 0 && nbd_aio_is_ready(channel->nbd))
        return 0;
    int error = nbd_get_errno();

    snprintf(text, text_bytes, "%s", rc < 0 ? nbd_get_error() : "it closed the connection");
    return error ? -error : -EIO;
}

/* Does the same as nbd_step(), over TLS. */
static int secure_wait(struct channel *channel, int wait_ms, char *text, size_t text_bytes)
{
    int rc = channel_step(channel);

    if (rc == -EAGAIN) {
        short events = secure_wants_output(channel->secure) ? POLLIN | POLLOUT : POLLIN;
        struct pollfd poll_fd = {.fd = secure_fd(channel->secure), .events = events};

        poll(&poll_fd, 1, wait_ms);
        rc = channel_step(channel);
    }
    if (rc < 0 && rc != -EAGAIN)
        snprintf(text, text_bytes, "%s", secure_why(channel->secure));
    return rc;
}

int channel_connect(struct channel *channel, int timeout_ms, int silent_ms, char *text, size_t text_bytes)
{
    uint64_t begun_ns = clock_ns();
    char uri[CHANNEL_URI_BYTES];

    if (!channel->secure && nbd_aio_connect_uri(channel->nbd, channel_uri(channel, uri)) < 0) {
        snprintf(text, text_bytes, "%s", nbd_get_error());
        return nbd_get_errno() ? -nbd_get_errno() : -EIO;
    }
    int rc =
        channel->secure || nbd_aio_is_connecting(channel->nbd) ? -EAGAIN : nbd_step(channel, 0, text, text_bytes);

    while (rc == -EAGAIN) {
        int passed_ms = (int)((clock_ns() - begun_ns) / 1000000u);

        if (passed_ms >= silent_ms && tcp_machine_is_silent(channel)) {
            snprintf(text, text_bytes, "its machine does not answer");
            return -ETIMEDOUT;
        }
        if (passed_ms >= timeout_ms) {
            if (tcp_negotiation_is_stuck(channel))
                snprintf(text, text_bytes, NO_PAGES_PASS);
            else
                snprintf(text, text_bytes, "it did not finish connecting within %d s", timeout_ms / 1000);
            return -ETIMEDOUT;
        }
        int left_ms = (passed_ms < silent_ms ? silent_ms : timeout_ms) - passed_ms;

        left_ms = left_ms > 0 ? left_ms : 1;
        rc = channel->secure ? secure_wait(channel, left_ms, text, text_bytes)
                             : nbd_step(channel, left_ms, text, text_bytes);
    }
    return rc;
}

struct export_facts channel_facts(const struct channel *channel)
{
    struct nbd_handle *nbd = channel->nbd;

    if (channel->secure)
        return *secure_facts(channel->secure);
    return (struct export_facts){
        .bytes = nbd_get_size(nbd),
        .max_read = nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM),
        .min_block = nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM),
        .read_only = nbd_is_read_only(nbd) == 1,
        .sees_all = nbd_can_multi_conn(nbd) == 1,
        .can_trim = nbd_can_trim(nbd) == 1,
        .structured = nbd_get_structured_replies_negotiated(nbd) == 1,
    };
}

char *channel_identity(const struct channel *channel)
{
    if (channel->secure)
        return strdup(secure_description(channel->secure));
    char *description = nbd_get_export_description(channel->nbd);

    return description ? description : strdup("");
}
