/* SPDX-License-Identifier: MIT */
/*
 * Pre-shared keys of TLS, and files of them in psktool's format: each line is IDENTITY:HEXKEY. Lines that are empty
 * or begin with '#' are skipped. The last colon of a line separates, because a key has none.
 */
#ifndef GHOSTBOX_PSK_H
#define GHOSTBOX_PSK_H

#include <stddef.h>
#include <stdint.h>

/* An attacker can test guessed keys against a recorded handshake, so a key must be too long to be guessed. */
#define PSK_MIN_BYTES 16u
#define PSK_MAX_BYTES 64u
/* GnuTLS takes no longer identities (its MAX_USERNAME_SIZE). */
#define PSK_IDENTITY_MAX 128u

struct psk {
    uint32_t n_bytes; /* 0: there is no key */
    uint8_t bytes[PSK_MAX_BYTES];
};

/* Reads a key from `length` hexadecimal digits. Returns 0, or -EINVAL if they are not a key of 16 to 64 bytes. */
int psk_parse(struct psk *psk, const char *hex, size_t length);
/* Overwrites the key. */
void psk_wipe(struct psk *psk);

/* Takes the key of one line. The identity has no '\0' at its end. Returns 0 to go on, 1 to stop, or -errno. */
typedef int (*psk_visitor)(void *ctx, const char *identity, size_t identity_bytes, const struct psk *psk);

/*
 * Calls visit for each key of a file: a regular file of at most 4 MiB, closed to all users but its owner. Returns 0,
 * or -errno: the visitor's, or another with a text that says what is wrong and how to mend it. The text never
 * contains a key. A file system that hangs holds up the caller.
 */
int psk_file_read(const char *path, psk_visitor visit, void *ctx, char *text, size_t text_bytes);

/*
 * Finds the key of one identity in such a file. Returns 0 with the key, -ENOKEY if the file has none for it, or
 * -errno as psk_file_read(); each error has a text.
 */
int psk_file_find(const char *path, const char *identity, struct psk *psk, char *text, size_t text_bytes);

#endif
