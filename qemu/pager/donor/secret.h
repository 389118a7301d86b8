/* SPDX-License-Identifier: MIT */
/*
 * The key of a donor over TLS. It is read from its file when the donor comes into use, and once more after each
 * handshake that failed, because the file may have another key by then; so no file is read while the donor is well.
 * The key is never in a message, a log or the state file: a pager that takes over reads it again.
 *
 * Key files may be on a file system that hangs. The threads that connect serve all donors, so they never read a file:
 * the key thread does, one file after the other. A key that was read before stays until the file has another one.
 */
#ifndef GHOSTBOX_PAGER_SECRET_H
#define GHOSTBOX_PAGER_SECRET_H

#include "common/psk.h"
#include "donor/nbds_uri.h"

#include <stddef.h>

struct secret;

/*
 * Starts the key thread, which ends with the process, because a file system that hangs cannot be interrupted. Returns
 * 0 or -errno.
 */
int secrets_start(void);

/* Makes the secret of this URI, without its key. NULL: no memory. */
struct secret *secret_new(const struct nbds_uri *uri);
/* Overwrites the key and frees the secret, at the end of its reading if its file is being read. NULL is allowed. */
void secret_free(struct secret *secret);
/*
 * Reads the key in the caller's thread, which may have to wait for the file system. Returns 0, or -errno with a
 * reason for people in why.
 */
int secret_read(struct secret *secret, char *why, size_t why_bytes);

/* The functions below may be called in any thread; none of them waits for a file system. */

/*
 * Copies the key to *psk. Returns 0, or the -errno of the last attempt to read the file, with a reason for people in
 * why, or -EAGAIN if there was none yet; then why is "" unless it takes long. If there is no key, this asks the key
 * thread to read the file.
 */
int secret_get(struct secret *secret, struct psk *psk, char *why, size_t why_bytes);
/* Asks the key thread to read the file: the key is not known yet, or a handshake with it has failed. */
void secret_ask(struct secret *secret);

#endif
