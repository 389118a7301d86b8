/* SPDX-License-Identifier: MIT */
#include "cause.h"

#include "donor.h"
#include "log.h"

#include <ctype.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Of every donor's cause; held while a few bytes are copied. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* What in libnbd's messages is of no use to a reader: "nbd_aio_notify_read: recv: server disconnected". */
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

static void cut(char *text, const char *part)
{
    char *at = strstr(text, part);

    if (at)
        memmove(at, at + strlen(part), strlen(at + strlen(part)) + 1);
}

void cause_make_plain(const char *why, char text[CAUSE_BYTES])
{
    snprintf(text, CAUSE_BYTES, "%s", skip_functions(why));
    cut(text, "?writer"); /* all connections of a donor then fail for the same reason */
    if (strstr(text, "no export named"))
        cut(text, ": No such file or directory");
    for (char *at = text; *at; at++) /* some of it may be the server's own words */
        *at = isprint((unsigned char)*at) ? *at : '?';
    if (isupper((unsigned char)text[0]) && islower((unsigned char)text[1]))
        text[0] = (char)tolower((unsigned char)text[0]);
}

/* But for the numbers in them: "no answer for 1.4 s" and "… 2.7 s" are one cause. */
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

/* Returns whether it is news: another cause than this connection had before, and than the log has last. */
static bool keep(struct channel *channel, const char text[CAUSE_BYTES])
{
    struct donor *donor = channel->donor;
    bool news = !same(channel->cause, text);

    memcpy(channel->cause, text, CAUSE_BYTES);
    pthread_mutex_lock(&lock);
    news = news && !same(donor->told_cause, text);
    memcpy(donor->cause, text, CAUSE_BYTES);
    if (news)
        memcpy(donor->told_cause, text, CAUSE_BYTES);
    pthread_mutex_unlock(&lock);
    return news;
}

void cause_note(struct channel *channel, const char *why)
{
    char text[CAUSE_BYTES] = "";

    cause_make_plain(why, text);
    bool news = keep(channel, text);

    if (news && !donor_gone(channel->donor))
        log_warning("donor %s: no connection: %s; trying again", channel->donor->uri, text);
    else
        log_debug("donor %s: no connection: %s", channel->donor->uri, text);
}

void cause_note_said(struct channel *channel, const char *why)
{
    char text[CAUSE_BYTES] = "";

    cause_make_plain(why, text);
    keep(channel, text);
}

void cause_clear(struct channel *channel)
{
    channel->cause[0] = '\0';
}

void cause_get(const struct donor *donor, char text[CAUSE_BYTES])
{
    pthread_mutex_lock(&lock);
    memcpy(text, donor->cause, CAUSE_BYTES);
    pthread_mutex_unlock(&lock);
}
