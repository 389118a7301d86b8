/* SPDX-License-Identifier: MIT */
#ifndef GHOSTBOX_PAGER_OPTIONS_H
#define GHOSTBOX_PAGER_OPTIONS_H

#include "kernel_features.h"
#include "log.h"
#include "pool.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define PEER_UIDS_MAX       8
#define READAHEAD_MAX_BYTES (1u << 20)

struct options {
    const char *listen, *control, *log_file, *state, *backup;
    uint64_t cache_bytes, extent_bytes, readahead_bytes, pool_bytes;
    uint64_t rebuild_rate; /* bytes a second, 0: no limit */
    uint32_t rebuild_after_s, poison_after_s, slow_us, replicas;
    bool allow_same_host, poison_on_loss;
    char *donors[DONORS_MAX];
    uint32_t n_donors;
    bool keep, resume, exit_with_client, fifo, probe, help, version;
    bool has_contents; /* --contents was given */
    bool libnbd_only;  /* for tests and comparisons: libnbd moves all bytes, not only those under TLS */
    uint32_t poll_us;
    uid_t peer_uids[PEER_UIDS_MAX];
    uint32_t n_peer_uids;
    bool hidden[FEATURES];
    enum log_level log_level;
};

/* Returns 0, or -EINVAL with a message for the user in text. */
int options_parse(struct options *options, int argc, char **argv, char *text, size_t text_bytes);
void options_usage(void);

#endif
