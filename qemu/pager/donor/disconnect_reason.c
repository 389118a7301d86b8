/* SPDX-License-Identifier: MIT */
#include "donor/disconnect_reason.h"

#include "log.h"

#include <ctype.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Guards the reasons of all donors. It is held only while a few bytes are copied. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Skips the names of functions in libnbd's messages, such as "nbd_aio_notify_read: recv: server disconnected". */
static const char *skip_functions(const char *why)
{
    static const char *const words[] = {"connect: ", "handshake: ", "recv: ", "send: "};
    const char *rest = strncmp(why, "nbd_", 4) == 0 ? strstr(why, ": ") : NULL;

    if (!rest)
        return why;
    rest += 2;
    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
        if (strncmp(rest, words[i], strlen(words[i])) == 0)
            rest += strlen(words[i]);
    const char *connect = strstr(rest, "could not connect to remote host: ");

    return connect ? connect + strlen("could not connect to remote host: ") : rest;
}

/* Removes the first `part` from text. */
static void cut(char *text, const char *part)
{
    char *at = strstr(text, part);

    if (at)
        memmove(at, at + strlen(part), strlen(at + strlen(part)) + 1);
}

void reason_make_plain(const char *why, char text[REASON_BYTES])
{
    snprintf(text, REASON_BYTES, "%s", skip_functions(why));
    cut(text, "?writer"); /* so that all connections of a donor fail with the same text */
    if (strstr(text, "no export named"))
        cut(text, ": No such file or directory");
    for (char *at = text; *at; at++) /* the text may hold bytes that the server chose */
        *at = isprint((unsigned char)*at) ? *at : '?';
    if (isupper((unsigned char)text[0]) && islower((unsigned char)text[1]))
        text[0] = (char)tolower((unsigned char)text[0]);
}

/* Whether two reasons differ in their numbers at most, as "no answer for 1.4 s" and "no answer for 2.7 s" do. */
static bool same(const char *one, const char *other)
{
    for (;;) {
        one += strspn(one, "0123456789.");
        other += strspn(other, "0123456789.");
        if (*one != *other)
            return false;
        if (*one == '\0')
            return true;
        one++;
        other++;
    }
}

/*
 * Keeps the reason. Returns whether it is news: it differs from the connection's last reason and from the donor's
 * last reason that was logged.
 */
static bool keep(struct channel *channel, const char text[REASON_BYTES])
{
    struct donor *donor = channel->donor;
    bool news = !same(channel->reason, text);

    memcpy(channel->reason, text, REASON_BYTES);
    pthread_mutex_lock(&lock);
    news = news && !same(donor->told_reason, text);
    memcpy(donor->reason, text, REASON_BYTES);
    if (news)
        memcpy(donor->told_reason, text, REASON_BYTES);
    pthread_mutex_unlock(&lock);
    return news;
}

void reason_note(struct channel *channel, const char *why)
{
    char text[REASON_BYTES] = "";

    reason_make_plain(why, text);
    bool news = keep(channel, text);

    if (news && !donor_gone(channel->donor))
        log_warning("donor %s: no connection: %s; trying again", channel->donor->uri, text);
    else
        log_debug("donor %s: no connection: %s", channel->donor->uri, text);
}

void reason_note_said(struct channel *channel, const char *why)
{
    char text[REASON_BYTES] = "";

    reason_make_plain(why, text);
    keep(channel, text);
}

void reason_clear(struct channel *channel)
{
    channel->reason[0] = '\0';
}

void reason_get(const struct donor *donor, char text[REASON_BYTES])
{
    pthread_mutex_lock(&lock);
    memcpy(text, donor->reason, REASON_BYTES);
    pthread_mutex_unlock(&lock);
}
