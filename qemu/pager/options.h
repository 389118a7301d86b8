/* SPDX-License-Identifier: MIT */
#ifndef GHOSTBOX_PAGER_OPTIONS_H
#define GHOSTBOX_PAGER_OPTIONS_H

#include "log.h"
#include "memory/kernel_features.h"
#include "pool/pool.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define PEER_UIDS_MAX       8
#define READAHEAD_MAX_BYTES (1u << 20)

/* The values of --contents, --on-donor-loss and --lost-pages, in the order of the words in the options table. */
enum contents { CONTENTS_FRESH, CONTENTS_KEEP };
enum on_loss { ON_LOSS_WAIT, ON_LOSS_POISON };
enum lost_pages { LOST_PAGES_POISON, LOST_PAGES_WAIT };

struct options {
    const char *listen, *control, *log_file, *state, *backup;
    uint64_t cache_bytes, extent_bytes, readahead_bytes, pool_bytes;
    uint64_t rebuild_rate; /* bytes a second; 0: no limit */
    uint32_t rebuild_after_s, poison_after_s, slow_us, replicas;
    bool allow_same_host;
    enum contents contents;
    bool has_contents; /* --contents was given */
    enum on_loss on_loss;
    enum lost_pages lost_pages;
    const char *donors[DONORS_MAX];
    uint32_t n_donors;
    bool resume, exit_with_client, fifo, probe, help, version;
    bool no_seccomp;  /* for tests: every system call is allowed */
    bool libnbd_only; /* for tests and comparisons: libnbd moves all bytes but those under TLS */
    uint32_t poll_us;
    uid_t peer_uids[PEER_UIDS_MAX];
    uint32_t n_peer_uids;
    bool hidden[FEATURES];
    enum log_level log_level;
};

/* Reads the options; strings in *options point into argv. Returns 0, or -EINVAL with an error for people in text. */
int options_parse(struct options *options, int argc, char **argv, char *text, size_t text_bytes);
/* Prints the help to stdout. */
void options_usage(void);

#endif
