/* SPDX-License-Identifier: MIT */
#ifndef GHOSTBOX_MEMSERVER_OPTIONS_H
#define GHOSTBOX_MEMSERVER_OPTIONS_H

#include "common/log.h"
#include "memserver/exports.h"

#include <stdbool.h>
#include <stdint.h>

/* --export NAME=SIZE */
struct export_option {
    char name[EXPORT_NAME_MAX + 1];
    uint64_t size_bytes;
};

/* --keep-awake */
enum keep_awake_option { KEEP_AWAKE_AUTO, KEEP_AWAKE_NEVER };

/* --tls */
enum tls_option { TLS_AUTO, TLS_REQUIRE };

/* --gather */
enum gather_option { GATHER_AUTO, GATHER_ALWAYS, GATHER_NEVER };

struct options {
    const char *bind;
    const char *port;
    uint64_t size_bytes;
    struct export_option *exports; /* malloc'd */
    unsigned n_exports;
    const char *control_path; /* NULL: no control socket */
    unsigned n_threads;
    enum keep_awake_option keep_awake;
    enum gather_option gather;
    unsigned poll_us;
    unsigned max_connections;
    unsigned max_handshakes, max_handshakes_per_address;
    unsigned handshake_limit_s;
    unsigned peer_limit_s;
    bool lock_memory;
    enum tls_option tls;
    const char *keys_path; /* --tls-psk, or NULL */
    const char *donor_id;  /* NULL: not given */
    const char *machine;   /* NULL: not given */
    const char *log_path;  /* NULL: stderr */
    enum log_level log_level;
    bool no_seccomp;
    bool help, version;
};

enum options_result {
    OPTIONS_OK,
    OPTIONS_DONE,  /* --help or --version was given, and its text was printed */
    OPTIONS_WRONG, /* an option is wrong, and the error was printed on stderr */
};

/* Reads the options. Strings in *options point into argv. The caller calls options_free() whatever this returns. */
enum options_result options_parse(struct options *options, int argc, char **argv);
void options_free(struct options *options);

#endif
