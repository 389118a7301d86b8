/* SPDX-License-Identifier: MIT */
#include "common/psk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Longer than any valid line, with the newline and the '\0' behind it. */
#define LINE_BYTES 1024
/* More than all keys of a memory server can have. */
#define FILE_MAX_BYTES (4 << 20)

static int digit_value(char digit)
{
    if (digit >= '0' && digit <= '9') {
        return digit - '0';
    }
    if (digit >= 'a' && digit <= 'f') {
        return digit - 'a' + 10;
    }
    return digit >= 'A' && digit <= 'F' ? digit - 'A' + 10 : -1;
}

int psk_parse(struct psk *psk, const char *hex, size_t length)
{
    if (length % 2 != 0 || length / 2 < PSK_MIN_BYTES || length / 2 > PSK_MAX_BYTES) {
        return -EINVAL;
    }
    for (size_t i = 0; i < length / 2; i++) {
        int high = digit_value(hex[2 * i]);
        int low = digit_value(hex[2 * i + 1]);
        if (high < 0 || low < 0) {
            psk_wipe(psk);
            return -EINVAL;
        }
        psk->bytes[i] = (uint8_t)(high << 4 | low);
    }
    psk->n_bytes = (uint32_t)(length / 2);
    return 0;
}

void psk_wipe(struct psk *psk)
{
    explicit_bzero(psk, sizeof(*psk));
}

static int fail(char *text, size_t text_bytes, const char *path, const char *what, int error)
{
    snprintf(text, text_bytes, "the key file %s %s", path, what);
    return error;
}

/*
 * Says why an open file is not taken for a file of keys. Returns 0 if it is one, or -errno with the reason in what.
 * What is no regular file might never end, or wait for a writer.
 */
static int file_check(int fd, char *what, size_t what_bytes)
{
    struct stat stat;
    if (fstat(fd, &stat) < 0) {
        snprintf(what, what_bytes, "cannot be read: %s", strerror(errno));
        return -EIO;
    }
    if (!S_ISREG(stat.st_mode)) {
        snprintf(what, what_bytes, "is no regular file");
        return -EINVAL;
    }
    if ((stat.st_mode & 0077) != 0) {
        snprintf(what, what_bytes, "is open to other users (mode %04o): chmod 600 it, and make new keys",
                 (unsigned)stat.st_mode & 07777);
        return -EPERM;
    }
    if (stat.st_size > FILE_MAX_BYTES) {
        snprintf(what, what_bytes, "has more than %d MiB", FILE_MAX_BYTES >> 20);
        return -EFBIG;
    }
    return 0;
}

/* Opens the file and checks it. On errors it returns NULL and sets *error. */
static FILE *file_open(const char *path, char *text, size_t text_bytes, int *error)
{
    char what[128];
    /* Without O_NONBLOCK the open of a FIFO would wait for a writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) {
        *error = -errno;
        snprintf(what, sizeof(what), "cannot be opened: %s", strerror(errno));
        fail(text, text_bytes, path, what, 0);
        return NULL;
    }
    int rc = file_check(fd, what, sizeof(what));
    if (rc < 0) {
        *error = fail(text, text_bytes, path, what, rc);
        close(fd);
        return NULL;
    }
    FILE *file = fdopen(fd, "r");
    if (file == NULL) {
        *error = fail(text, text_bytes, path, "cannot be read: no memory", -ENOMEM);
        close(fd);
    }
    return file;
}

/* Returns what visit returns, 0 for a line without a key, or -EINVAL; then *what says what is wrong. */
static int line_take(char *line, psk_visitor visit, void *ctx, const char **what)
{
    struct psk psk = {0};
    size_t length = strcspn(line, "\r\n");
    if (length == LINE_BYTES - 1) {
        *what = "has more than 1022 bytes";
        return -EINVAL;
    }
    if (length == 0 || line[0] == '#') {
        return 0;
    }
    line[length] = '\0';
    const char *colon = strrchr(line, ':');
    if (colon == NULL || colon == line || colon - line > (ptrdiff_t)PSK_IDENTITY_MAX) {
        *what = "is not IDENTITY:HEXKEY with an identity of 1 to 128 bytes";
        return -EINVAL;
    }
    size_t identity_bytes = (size_t)(colon - line);
    if (psk_parse(&psk, colon + 1, length - identity_bytes - 1) < 0) {
        *what = "has no key of 32 to 128 hexadecimal digits behind its last colon";
        return -EINVAL;
    }
    int rc = visit(ctx, line, identity_bytes, &psk);
    psk_wipe(&psk);
    return rc;
}

int psk_file_read(const char *path, psk_visitor visit, void *ctx, char *text, size_t text_bytes)
{
    char line[LINE_BYTES], buffer[LINE_BYTES], wrong[192];
    const char *what = "";
    int rc = 0;
    FILE *file = file_open(path, text, text_bytes, &rc);
    if (file == NULL) {
        return rc;
    }
    /* Keys pass through this buffer, which is wiped below; stdio would free a buffer of its own with keys in it. */
    setvbuf(file, buffer, _IOFBF, sizeof(buffer));
    for (unsigned n = 1; rc == 0 && fgets(line, sizeof(line), file) != NULL; n++) {
        rc = line_take(line, visit, ctx, &what);
        if (rc < 0) {
            snprintf(wrong, sizeof(wrong), "cannot be used: its line %u %s", n, what);
            fail(text, text_bytes, path, wrong, 0);
        }
    }
    if (rc >= 0 && ferror(file)) {
        rc = fail(text, text_bytes, path, "cannot be read", -EIO);
    }
    fclose(file);
    explicit_bzero(line, sizeof(line));
    explicit_bzero(buffer, sizeof(buffer));
    return rc < 0 ? rc : 0;
}

struct search {
    const char *identity;
    struct psk *found;
};

static int compare(void *ctx, const char *identity, size_t identity_bytes, const struct psk *psk)
{
    const struct search *search = ctx;
    if (strlen(search->identity) != identity_bytes || memcmp(search->identity, identity, identity_bytes) != 0) {
        return 0;
    }
    *search->found = *psk;
    return 1;
}

int psk_file_find(const char *path, const char *identity, struct psk *psk, char *text, size_t text_bytes)
{
    struct search search = {.identity = identity, .found = psk};
    *psk = (struct psk){0};
    int rc = psk_file_read(path, compare, &search, text, text_bytes);
    if (rc == 0 && psk->n_bytes == 0) {
        snprintf(text, text_bytes, "the key file %s has no key for the identity '%s'", path, identity);
        rc = -ENOKEY;
    }
    return rc;
}
