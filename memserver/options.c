/* SPDX-License-Identifier: MIT */
#include "memserver/options.h"

#include "common/size.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS_DEFAULT_MAX 4u
/* Long enough to catch the next request of a client with one in flight where processors are slow to wake (60 us a
 * request on two virtual processors). Used only where it pays and nothing better is allowed (waiting.h). */
#define POLL_DEFAULT_US 100u

static const char usage[] =
    "usage: ghostbox-memserver --size SIZE [option]...\n"
    "\n"
    "Serves memory of this machine over NBD. It has no authentication: bind it to addresses you trust.\n"
    "\n"
    "  --size SIZE             what all exports together may hold (for example 512M, 16G)\n"
    "  --export NAME=SIZE      an export that is there from the start; may be given several times\n"
    "  --bind ADDRESS          address to listen on (127.0.0.1)\n"
    "  --port PORT             TCP port; 0 picks a free one (10809)\n"
    "  --control SOCKET        Unix socket for commands (none)\n"
    "  --threads N             worker threads (one for each CPU, at most 4)\n"
    "  --keep-awake WHEN       auto: while that serves more requests, ask the kernel to keep processors quick to\n"
    "                          wake (needs root: /dev/cpu_dma_latency); never (auto)\n"
    "  --poll-us N             where --keep-awake cannot be: how long a worker tries again before it sleeps,\n"
    "                          while that serves more requests; 0: not at all (100)\n"
    "  --gather WHEN           auto: be woken for several requests at once by a client that sends each by itself,\n"
    "                          where that is no loss; always: with no trial; never (auto)\n"
    "  --max-connections N     more are refused (1024)\n"
    "  --handshake-timeout N   seconds a client has to choose an export (30)\n"
    "  --peer-timeout N        seconds after which a client is given up that has vanished, or takes nothing of what\n"
    "                          it asked for (60)\n"
    "  --donor-id ID           who lends this memory: up to 64 letters, digits or '-'; clients tell by it whether\n"
    "                          memory that is gone was this donor's (none)\n"
    "  --machine NAME          which machine this is, in the same characters; clients that want two copies on two\n"
    "                          machines tell by it that two donors are on one (none)\n"
    "  --log-file FILE         append log lines to FILE instead of stderr\n"
    "  --log-level LEVEL       error, warning, info or debug (info)\n"
    "  --version, --help\n";

enum {
    OPT_SIZE = 256,
    OPT_EXPORT,
    OPT_BIND,
    OPT_PORT,
    OPT_CONTROL,
    OPT_THREADS,
    OPT_KEEP_AWAKE,
    OPT_POLL_US,
    OPT_GATHER,
    OPT_MAX_CONNECTIONS,
    OPT_HANDSHAKE_TIMEOUT,
    OPT_PEER_TIMEOUT,
    OPT_DONOR_ID,
    OPT_MACHINE,
    OPT_LOG_FILE,
    OPT_LOG_LEVEL,
    OPT_VERSION,
    OPT_HELP,
};

static const struct option long_options[] = {
    {"size", required_argument, NULL, OPT_SIZE},
    {"export", required_argument, NULL, OPT_EXPORT},
    {"bind", required_argument, NULL, OPT_BIND},
    {"port", required_argument, NULL, OPT_PORT},
    {"control", required_argument, NULL, OPT_CONTROL},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"keep-awake", required_argument, NULL, OPT_KEEP_AWAKE},
    {"poll-us", required_argument, NULL, OPT_POLL_US},
    {"gather", required_argument, NULL, OPT_GATHER},
    {"max-connections", required_argument, NULL, OPT_MAX_CONNECTIONS},
    {"handshake-timeout", required_argument, NULL, OPT_HANDSHAKE_TIMEOUT},
    {"peer-timeout", required_argument, NULL, OPT_PEER_TIMEOUT},
    {"donor-id", required_argument, NULL, OPT_DONOR_ID},
    {"machine", required_argument, NULL, OPT_MACHINE},
    {"log-file", required_argument, NULL, OPT_LOG_FILE},
    {"log-level", required_argument, NULL, OPT_LOG_LEVEL},
    {"version", no_argument, NULL, OPT_VERSION},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static enum options_result wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));

static enum options_result wrong(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("ghostbox-memserver: ", stderr);
    vfprintf(stderr, format, args);
    fputs(" (see --help)\n", stderr);
    va_end(args);
    return OPTIONS_WRONG;
}

static enum options_result size_option(const char *option, const char *text, uint64_t *bytes)
{
    int rc = size_parse(text, bytes);
    if (rc == -ERANGE) {
        return wrong("%s: '%s' is too large", option, text);
    }
    if (rc < 0) {
        return wrong("%s: '%s' is not a size, such as 4096, 512M or 16G", option, text);
    }
    return *bytes > 0 ? OPTIONS_OK : wrong("%s: must be more than 0", option);
}

static enum options_result number_option(const char *option, const char *text, unsigned min, unsigned max,
                                         unsigned *number)
{
    uint64_t value;
    if (number_parse(text, min, max, &value) < 0) {
        return wrong("%s: '%s' is not a whole number from %u to %u", option, text, min, max);
    }
    *number = (unsigned)value;
    return OPTIONS_OK;
}

static enum options_result export_option(struct options *options, const char *text)
{
    /* The last one: names may have '=' in them, sizes do not. */
    const char *equals = strrchr(text, '=');
    if (equals == NULL || equals == text) {
        return wrong("--export: '%s' is not NAME=SIZE", text);
    }
    size_t name_bytes = (size_t)(equals - text);
    if (name_bytes > EXPORT_NAME_MAX) {
        return wrong("--export: a name has at most %u bytes", EXPORT_NAME_MAX);
    }
    struct export_option *grown = realloc(options->exports, (options->n_exports + 1) * sizeof(options->exports[0]));
    if (grown == NULL) {
        return wrong("--export: out of memory");
    }
    options->exports = grown;
    struct export_option *export = &options->exports[options->n_exports];
    memcpy(export->name, text, name_bytes);
    export->name[name_bytes] = '\0';
    enum options_result result = size_option("--export", equals + 1, &export->size_bytes);
    options->n_exports += result == OPTIONS_OK ? 1 : 0;
    return result;
}

static enum options_result port_option(struct options *options, const char *text)
{
    unsigned port;
    options->port = text;
    return number_option("--port", text, 0, 65535, &port);
}

/* What becomes part of an export's description: it has no comma, which separates the parts. */
static enum options_result word_option(const char *option, const char *text, const char **word)
{
    size_t length = strlen(text);
    size_t good = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-");
    *word = text;
    return length > 0 && length <= DONOR_ID_MAX && good == length
               ? OPTIONS_OK
               : wrong("%s: '%s' is not 1 to %u letters, digits or '-'", option, text, DONOR_ID_MAX);
}

static enum options_result gather_option(struct options *options, const char *text)
{
    static const char *const names[] = {[GATHER_AUTO] = "auto", [GATHER_ALWAYS] = "always", [GATHER_NEVER] = "never"};
    for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(text, names[i]) == 0) {
            options->gather = (enum gather_option)i;
            return OPTIONS_OK;
        }
    }
    return wrong("--gather: '%s' is not auto, always or never", text);
}

static enum options_result option_take(struct options *options, int option, const char *text)
{
    switch (option) {
    case OPT_SIZE:
        return size_option("--size", text, &options->size_bytes);
    case OPT_EXPORT:
        return export_option(options, text);
    case OPT_BIND:
        options->bind = text;
        return OPTIONS_OK;
    case OPT_PORT:
        return port_option(options, text);
    case OPT_CONTROL:
        options->control_path = text;
        return OPTIONS_OK;
    case OPT_THREADS:
        return number_option("--threads", text, 1, 64, &options->n_threads);
    case OPT_KEEP_AWAKE:
        options->keep_awake = strcmp(text, "auto") == 0;
        return options->keep_awake || strcmp(text, "never") == 0
                   ? OPTIONS_OK
                   : wrong("--keep-awake: '%s' is not auto or never", text);
    case OPT_POLL_US:
        return number_option("--poll-us", text, 0, 100000, &options->poll_us);
    case OPT_GATHER:
        return gather_option(options, text);
    case OPT_MAX_CONNECTIONS:
        return number_option("--max-connections", text, 1, 65536, &options->max_connections);
    case OPT_HANDSHAKE_TIMEOUT:
        return number_option("--handshake-timeout", text, 1, 3600, &options->handshake_limit_s);
    case OPT_PEER_TIMEOUT:
        return number_option("--peer-timeout", text, 1, 3600, &options->peer_limit_s);
    case OPT_DONOR_ID:
        return word_option("--donor-id", text, &options->donor_id);
    case OPT_MACHINE:
        return word_option("--machine", text, &options->machine);
    case OPT_LOG_FILE:
        options->log_path = text;
        return OPTIONS_OK;
    case OPT_LOG_LEVEL:
        return log_level_parse(text, &options->log_level) == 0
                   ? OPTIONS_OK
                   : wrong("--log-level: '%s' is not error, warning, info or debug", text);
    case OPT_VERSION:
        puts("ghostbox-memserver " GHOSTBOX_VERSION);
        return OPTIONS_DONE;
    case OPT_HELP:
        fputs(usage, stdout);
        return OPTIONS_DONE;
    default:
        return OPTIONS_WRONG;
    }
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
    *options = (struct options){.bind = "127.0.0.1",
                                .port = "10809",
                                .n_threads = threads_default(),
                                .keep_awake = true,
                                .poll_us = POLL_DEFAULT_US,
                                .max_connections = 1024,
                                .handshake_limit_s = 30,
                                .peer_limit_s = 60,
                                .log_level = LOG_INFO};
    int option;
    /* ':' first: we say what is wrong ourselves, in one form. */
    while ((option = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
        if (option == '?') {
            return wrong("unknown option '%s'", argv[optind - 1]);
        }
        if (option == ':') {
            return wrong("%s needs a value", argv[optind - 1]);
        }
        enum options_result result = option_take(options, option, optarg);
        if (result != OPTIONS_OK) {
            return result;
        }
    }
    if (optind < argc) {
        return wrong("'%s' is not an option", argv[optind]);
    }
    return options->size_bytes > 0 ? OPTIONS_OK : wrong("--size is needed: how much memory to lend");
}

void options_free(struct options *options)
{
    free(options->exports);
    options->exports = NULL;
}
