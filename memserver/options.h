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

/* --gather */
enum gather_option { GATHER_AUTO, GATHER_ALWAYS, GATHER_NEVER };

struct options {
    const char *bind;
    const char *port;
    uint64_t size_bytes;
    struct export_option *exports; /* malloc'd */
    unsigned n_exports;
    const char *control_path; /* NULL: none */
    unsigned n_threads;
    bool keep_awake;
    enum gather_option gather;
    unsigned poll_us;
    unsigned max_connections;
    unsigned handshake_limit_s;
    unsigned peer_limit_s;
    const char *donor_id; /* NULL: none */
    const char *machine;  /* NULL: none */
    const char *log_path; /* NULL: stderr */
    enum log_level log_level;
};

enum options_result {
    OPTIONS_OK,
    OPTIONS_DONE,  /* --help or --version: printed */
    OPTIONS_WRONG, /* said why on stderr */
};

/* Strings point into argv. */
enum options_result options_parse(struct options *options, int argc, char **argv);
void options_free(struct options *options);

#endif
