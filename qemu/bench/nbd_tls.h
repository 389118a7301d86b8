/* SPDX-License-Identifier: MIT */
/* TLS of the NBD load: that of the pager (common/tls.h), by calls that wait. */
#ifndef GHOSTBOX_BENCH_NBD_TLS_H
#define GHOSTBOX_BENCH_NBD_TLS_H

#include "common/tls.h"

#include <sys/types.h>
#include <sys/uio.h>

/*
 * Chooses an export over TLS, with simple replies. `keys` is a file with the export's key. Returns NULL, or a text
 * that says what failed. *tls is then NULL or a session, which the caller frees. Each wait takes limit_ms at most.
 */
const char *nbd_negotiate_sealed(int fd, const char *keys, const char *export, int limit_ms, struct tls **tls,
                                 uint64_t *export_bytes);
/* Sends all bytes of the n buffers. Returns 0, or -1 with errno. */
int sealed_send(struct tls *tls, int fd, const struct iovec *iov, int n, int limit_ms);
/*
 * Receives as recv(2) does, and waits for limit_ms at most. Returns -1 with EAGAIN if limit_ms is 0 and no byte came.
 */
ssize_t sealed_receive(struct tls *tls, int fd, void *buffer, size_t bytes, int limit_ms);

#endif
