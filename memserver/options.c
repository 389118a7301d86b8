/* SPDX-License-Identifier: MIT */
#include "memserver/options.h"

#include "common/option_table.h"
#include "common/size.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS_DEFAULT_MAX 4u

static int export_take(void *values, const char *text, struct option_error *error);
static int port_take(void *values, const char *text, struct option_error *error);
static int donor_id_take(void *values, const char *text, struct option_error *error);
static int machine_take(void *values, const char *text, struct option_error *error);

#define SETS(member) .offset = offsetof(struct options, member)

static const struct option_spec specs[] = {
    {"size", "SIZE", OPTION_SIZE, .min = 1, .max = INT64_MAX, SETS(size_bytes),
     .help = "how much memory all exports together may have (for example 512M, 16G); it must be given"},
    {"export", "NAME=SIZE", OPTION_OTHER, .take = export_take,
     .help = "an export that is there from the start; may be given several times"},
    {"bind", "ADDRESS", OPTION_TEXT, SETS(bind), .standard = "127.0.0.1", .help = "address to listen on"},
    {"port", "PORT", OPTION_TEXT, SETS(port), .standard = "10809", .take = port_take,
     .help = "TCP port; 0 picks a free one"},
    {"control", "SOCKET", OPTION_TEXT, SETS(control_path), .help = "Unix socket for commands (none)"},
    {"threads", "N", OPTION_NUMBER, .min = 1, .max = 64, SETS(n_threads),
     .help = "how many worker threads there are; if it is not given, one for each processor, at most 4"},
    {"keep-awake", "auto|never", OPTION_CHOICE, SETS(keep_awake), .standard = "auto", .wrong = "not auto or never",
     .help = "auto: while that serves more requests, ask the kernel to keep processors quick to wake (needs root: "
             "/dev/cpu_dma_latency)"},
    /*
     * 100 us are long enough to catch the next request of a client with one request in flight where processors are
     * slow to wake (60 us a request on two virtual processors). The worker polls only where that pays and
     * /dev/cpu_dma_latency cannot be used (waiting.h).
     */
    {"poll-us", "N", OPTION_NUMBER, .max = 100000, SETS(poll_us), .standard = "100",
     .help =
         "where the kernel cannot be asked (--keep-awake): microseconds for which a worker polls its sockets before "
         "it sleeps, while that serves more requests; 0: it never polls"},
    {"gather", "auto|always|never", OPTION_CHOICE, SETS(gather), .standard = "auto",
     .wrong = "not auto, always or never",
     .help = "auto: a worker waits until several requests have come from a client that sends each by itself, where "
             "that is no loss; always: without a trial whether it is"},
    {"max-connections", "N", OPTION_NUMBER, .min = 1, .max = 65536, SETS(max_connections), .standard = "1024",
     .help = "how many connections may be open; more are refused"},
    {"handshake-timeout", "N", OPTION_NUMBER, .min = 1, .max = 3600, SETS(handshake_limit_s), .standard = "10",
     .help = "seconds within which a client has to choose an export"},
    {"max-handshakes", "N", OPTION_NUMBER, .min = 1, .max = 65536, SETS(max_handshakes), .standard = "512",
     .help = "how many connections may be open whose clients have chosen no export yet; for more, the oldest is "
             "closed, of the address with most"},
    {"max-handshakes-per-address", "N", OPTION_NUMBER, .min = 1, .max = 65536, SETS(max_handshakes_per_address),
     .standard = "128", .help = "how many such connections one address may have; for more, its oldest is closed"},
    {"peer-timeout", "N", OPTION_NUMBER, .min = 1, .max = 3600, SETS(peer_limit_s), .standard = "60",
     .help =
         "seconds after which the connection of a client is closed that has vanished, or does not read its answers"},
    {"lock-memory", NULL, OPTION_FLAG, SETS(lock_memory),
     .help = "never let lent memory be swapped out: all memory of this process is locked as it is touched"},
    {"tls", "auto|require", OPTION_CHOICE, SETS(tls), .standard = "auto", .wrong = "not auto or require",
     .help = "auto: clients use an export with a key over TLS only, and an export without a key only without TLS; "
             "require: clients can do nothing without TLS, and each export must have a key"},
    {"tls-psk", "FILE", OPTION_TEXT, SETS(keys_path),
     .help = "keys of exports, those of --export and of later ones: lines EXPORT:HEXKEY, as psktool writes them; "
             "mode 0600"},
    {"donor-id", "ID", OPTION_TEXT, SETS(donor_id), .take = donor_id_take,
     .help = "id of the donor that lends this memory: up to 64 letters, digits or '-'; when memory is gone, clients "
             "tell by it whether this donor held it (none)"},
    {"machine", "NAME", OPTION_TEXT, SETS(machine), .take = machine_take,
     .help = "name of this machine, in the same characters; clients that keep two copies of a page on two machines "
             "tell by it that two donors are on one machine (none)"},
    {"log-file", "FILE", OPTION_TEXT, SETS(log_path), .help = "append log lines to FILE instead of stderr"},
    {"log-level", "error|warning|info|debug", OPTION_CHOICE, SETS(log_level), .standard = "info",
     .wrong = "not error, warning, info or debug", .help = "which log lines are written"},
    {"no-seccomp", NULL, OPTION_FLAG, .for_tests = true, SETS(no_seccomp), .help = "allow every system call"},
    {"version", NULL, OPTION_END, SETS(version), .help = "print the version, and end"},
    {"help", NULL, OPTION_END, SETS(help), .help = "print this, and end"},
};

static const struct option_table table = {
    .usage = "usage: ghostbox-memserver --size SIZE [option]...\n"
             "\n"
             "Serves memory of this machine over NBD. Anybody who reaches its port can use exports that have no key: "
             "bind\n"
             "it to addresses you trust, or see --tls.\n"
             "\n",
    .specs = specs,
    .n_specs = sizeof(specs) / sizeof(specs[0]),
    .not_a_size = "not a size, such as 4096, 512M or 16G",
    .not_a_number = "not a whole number",
    .needs_value = "%s needs a value",
    .not_an_option = "'%s' is not an option",
};

static int export_take(void *values, const char *text, struct option_error *error)
{
    static const struct option_spec size = {"export", NULL, OPTION_SIZE, .min = 1, .max = INT64_MAX};
    struct options *options = values;
    /* The last '=' ends the name: a name may contain '=', a size cannot. */
    const char *equals = strrchr(text, '=');
    if (equals == NULL || equals == text) {
        return option_fail(error, "--export: '%s' is not NAME=SIZE", text);
    }
    size_t name_bytes = (size_t)(equals - text);
    if (name_bytes > EXPORT_NAME_MAX) {
        return option_fail(error, "--export: a name has at most %u bytes", EXPORT_NAME_MAX);
    }
    struct export_option *grown = realloc(options->exports, (options->n_exports + 1) * sizeof(options->exports[0]));
    if (grown == NULL) {
        return option_fail(error, "--export: out of memory");
    }
    options->exports = grown;
    struct export_option *export = &options->exports[options->n_exports];
    memcpy(export->name, text, name_bytes);
    export->name[name_bytes] = '\0';
    int rc = option_size_read(&table, &size, equals + 1, &export->size_bytes, error);
    options->n_exports += rc == 0 ? 1 : 0;
    return rc;
}

static int port_take(void *values, const char *text, struct option_error *error)
{
    (void)values;
    uint64_t port;
    return number_parse(text, 0, 65535, &port) == 0
               ? 0
               : option_fail(error, "--port: '%s' is not a whole number from 0 to 65535", text);
}

/* Checks a word of an export's description. It may have no comma, because commas separate the description's parts. */
static int word_check(const char *option, const char *text, struct option_error *error)
{
    size_t length = strlen(text);
    size_t good = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-");
    return length > 0 && length <= DONOR_ID_MAX && good == length
               ? 0
               : option_fail(error, "%s: '%s' is not 1 to %u letters, digits or '-'", option, text, DONOR_ID_MAX);
}

static int donor_id_take(void *values, const char *text, struct option_error *error)
{
    (void)values;
    return word_check("--donor-id", text, error);
}

static int machine_take(void *values, const char *text, struct option_error *error)
{
    (void)values;
    return word_check("--machine", text, error);
}

static unsigned threads_default(void)
{
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (n_cpus < 1) {
        return 1;
    }
    return (unsigned long)n_cpus < THREADS_DEFAULT_MAX ? (unsigned)n_cpus : THREADS_DEFAULT_MAX;
}

enum options_result options_parse(struct options *options, int argc, char **argv)
{
    struct option_error error;
    *options = (struct options){.n_threads = threads_default()};
    int rc = option_table_read(&table, options, argc, argv, &error);
    if (rc == 0 && options->version) {
        puts("ghostbox-memserver " GHOSTBOX_VERSION);
        return OPTIONS_DONE;
    }
    if (rc == 0 && options->help) {
        option_table_help(&table);
        return OPTIONS_DONE;
    }
    if (rc == 0 && options->size_bytes == 0) {
        rc = option_fail(&error, "--size is needed: how much memory to lend");
    }
    if (rc < 0) {
        fprintf(stderr, "ghostbox-memserver: %s (see --help)\n", error.text);
        return OPTIONS_WRONG;
    }
    return OPTIONS_OK;
}

void options_free(struct options *options)
{
    free(options->exports);
    options->exports = NULL;
}
