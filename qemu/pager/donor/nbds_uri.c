/* SPDX-License-Identifier: MIT */
#include "donor/nbds_uri.h"

#include <ctype.h>
#include <string.h>

#define SCHEME   "nbds://"
#define KEY_FILE "tls-psk-file="

static int digit_value(char digit)
{
    return isdigit((unsigned char)digit) ? digit - '0' : tolower((unsigned char)digit) - 'a' + 10;
}

/* Decodes %XX. Returns false if the text is too long, or has a NUL byte or a '%' without two digits in it. */
static bool decode(char *to, size_t to_bytes, const char *from, size_t length)
{
    size_t used = 0;

    for (size_t i = 0; i < length; i++) {
        char byte = from[i];

        if (byte == '%') {
            if (length - i < 3 || !isxdigit((unsigned char)from[i + 1]) || !isxdigit((unsigned char)from[i + 2]))
                return false;
            byte = (char)(digit_value(from[i + 1]) << 4 | digit_value(from[i + 2]));
            i += 2;
        }
        if (byte == '\0' || used + 1 == to_bytes)
            return false;
        to[used++] = byte;
    }
    to[used] = '\0';
    return true;
}

bool uri_is_nbds(const char *uri)
{
    return strncmp(uri, SCHEME, strlen(SCHEME)) == 0;
}

/* Reads the URI's only parameter, which names the file with the key. Returns as nbds_uri_read(). */
static const char *read_query(struct nbds_uri *parts, const char *query)
{
    if (strncmp(query, "?" KEY_FILE, strlen("?" KEY_FILE)) != 0)
        return "needs ?tls-psk-file=FILE behind the export, the file with its key, and takes nothing else there";
    query += strlen("?" KEY_FILE);
    if (strpbrk(query, "&#"))
        return "takes nothing but tls-psk-file=FILE behind its '?'";
    if (!decode(parts->key_path, sizeof(parts->key_path), query, strlen(query)) || parts->key_path[0] != '/')
        return "needs the whole path of the file in tls-psk-file=FILE, from '/' on";
    return NULL;
}

const char *nbds_uri_read(struct nbds_uri *parts, const char *uri)
{
    const char *authority = uri + strlen(SCHEME);
    size_t authority_bytes = strcspn(authority, "/?#");
    const char *user_end = memchr(authority, '@', authority_bytes);
    const char *path = authority + authority_bytes;

    *parts = (struct nbds_uri){0};
    path += *path == '/';
    size_t path_bytes = strcspn(path, "?#");

    if (authority_bytes == 0 || user_end == authority + authority_bytes - 1)
        return "names no host";
    /* The empty name is the default export, which other servers have. */
    if (!decode(parts->export, sizeof(parts->export), path, path_bytes))
        return "names an export whose name is too long, or written wrongly";
    const char *identity = user_end ? authority : path;
    size_t identity_bytes = user_end ? (size_t)(user_end - authority) : path_bytes;

    if (identity_bytes == 0 || !decode(parts->identity, sizeof(parts->identity), identity, identity_bytes))
        return "needs an identity of 1 to 128 bytes before the '@', or an export's name of that length";
    return read_query(parts, path + path_bytes);
}
