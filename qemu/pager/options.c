/* SPDX-License-Identifier: MIT */
#include "options.h"

#include "pages.h"
#include "size.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CACHE_MIN_BYTES (1ull << 20)

enum option_id {
    OPT_LISTEN = 256,
    OPT_CONTROL,
    OPT_CACHE,
    OPT_DONOR,
    OPT_CONTENTS,
    OPT_EXTENT,
    OPT_READAHEAD,
    OPT_POLL,
    OPT_PEER_UID,
    OPT_EXIT_WITH_CLIENT,
    OPT_STATE,
    OPT_RESUME,
    OPT_HIDE,
    OPT_REPLICAS,
    OPT_SAME_HOST,
    OPT_BACKUP,
    OPT_POOL,
    OPT_REBUILD_AFTER,
    OPT_REBUILD_RATE,
    OPT_SLOW,
    OPT_ON_LOSS,
    OPT_POISON_AFTER,
    OPT_LOST_PAGES,
    OPT_FIFO,
    OPT_LIBNBD,
    OPT_LOG_FILE,
    OPT_LOG_LEVEL,
    OPT_PROBE,
    OPT_HELP,
    OPT_VERSION
};

static const struct option long_options[] = {
    {"listen", required_argument, NULL, OPT_LISTEN},
    {"control", required_argument, NULL, OPT_CONTROL},
    {"cache", required_argument, NULL, OPT_CACHE},
    {"donor", required_argument, NULL, OPT_DONOR},
    {"contents", required_argument, NULL, OPT_CONTENTS},
    {"extent", required_argument, NULL, OPT_EXTENT},
    {"readahead", required_argument, NULL, OPT_READAHEAD},
    {"poll-us", required_argument, NULL, OPT_POLL},
    {"peer-uid", required_argument, NULL, OPT_PEER_UID},
    {"exit-with-client", no_argument, NULL, OPT_EXIT_WITH_CLIENT},
    {"state", required_argument, NULL, OPT_STATE},
    {"resume", no_argument, NULL, OPT_RESUME},
    {"replicas", required_argument, NULL, OPT_REPLICAS},
    {"allow-same-host", no_argument, NULL, OPT_SAME_HOST},
    {"backup", required_argument, NULL, OPT_BACKUP},
    {"pool", required_argument, NULL, OPT_POOL},
    {"rebuild-after", required_argument, NULL, OPT_REBUILD_AFTER},
    {"rebuild-rate", required_argument, NULL, OPT_REBUILD_RATE},
    {"slow-us", required_argument, NULL, OPT_SLOW},
    {"on-donor-loss", required_argument, NULL, OPT_ON_LOSS},
    {"poison-after", required_argument, NULL, OPT_POISON_AFTER},
    {"lost-pages", required_argument, NULL, OPT_LOST_PAGES},
    {"hide-features", required_argument, NULL, OPT_HIDE},
    {"fifo", no_argument, NULL, OPT_FIFO},
    {"libnbd", no_argument, NULL, OPT_LIBNBD},
    {"log-file", required_argument, NULL, OPT_LOG_FILE},
    {"log-level", required_argument, NULL, OPT_LOG_LEVEL},
    {"probe", no_argument, NULL, OPT_PROBE},
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

void options_usage(void)
{
    puts(
        "usage: ghostbox-pager --listen SOCKET --control SOCKET --cache SIZE --donor URI [--donor URI]… [options]\n"
        "\n"
        "Serves the page faults of remote memory: keeps a bounded cache here, the rest on NBD exports.\n"
        "\n"
        "  --listen SOCKET        where the shim in QEMU connects\n"
        "  --control SOCKET       control socket, JSON lines\n"
        "  --cache SIZE           at most this much remote memory is kept here (1M or more)\n"
        "  --donor URI            an NBD export: nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH\n"
        "  --contents fresh|keep  keep: what the exports hold is the memory's first content (default fresh: zeroes)\n"
        "  --replicas N           keep each extent on so many donors, 1 or 2 (default 1), of different hosts\n"
        "  --allow-same-host      … of different URIs is enough\n"
        "  --backup URI           one more copy of all, written behind: an NBD export as large as the pool\n"
        "  --pool SIZE            memory that regions may use (default: all that fits); what the donors have beyond "
        "it is\n"
        "                         spare room for copies that are lost or moved\n"
        "  --rebuild-after S      copies on a donor that is down so long are made anew elsewhere (default 10)\n"
        "  --rebuild-rate SIZE    bytes a second that making copies may take, 0: no limit (default 256M)\n"
        "  --slow-us N            a donor is slow if more than 1 % of its answers take longer (default 50000)\n"
        "  --on-donor-loss wait|poison\n"
        "                         pages whose last copy is on a donor that is down: wait for it (default), or give "
        "them up\n"
        "  --poison-after S       … after so long (default 30)\n"
        "  --lost-pages poison|wait\n"
        "                         whoever touches a page that is lost: SIGBUS (default), or waits for ever, for QEMU "
        "without\n"
        "                         KVM, which SIGBUS ends\n"
        "  --extent SIZE          how the pages are spread over the donors (default: 16M or what fits)\n"
        "  --readahead SIZE       largest window that is read ahead, 0 turns it off (default 256K)\n"
        "  --poll-us N            spin this long for the next event before sleeping, 0 to 10000 (default 50)\n"
        "  --peer-uid UID         who may connect besides root and ourselves (repeatable)\n"
        "  --exit-with-client     end when the process whose memory this is has ended, and trim the exports\n"
        "  --state FILE           keep the page map in FILE (on a tmpfs), so that another pager can go on if this "
        "one dies\n"
        "  --resume               go on with the page map in --state FILE; cache, donors and contents are in it\n"
        "  --hide-features A,B    do as if the kernel lacked these features (for tests)\n"
        "  --log-file FILE        instead of stderr\n"
        "  --log-level LEVEL      error, warning, info (default) or debug\n"
        "  --probe                print what this kernel's userfaultfd can do as JSON, and end; with --state, "
        "whether\n"
        "                         this pager could go on with that file (and exit 1 if not), which may be in use\n"
        "  --version, --help\n"
        "\n"
        "Example:\n"
        "  ghostbox-pager --listen p.sock --control c.sock --cache 256M --donor nbd://127.0.0.1:10809/lease1");
}

__attribute__((format(printf, 3, 4))) static int fail(char *text, size_t text_bytes, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(text, text_bytes, format, args);
    va_end(args);
    return -EINVAL;
}

static int parse_size(const char *option, const char *value, uint64_t min, uint64_t max, uint64_t *bytes, char *text,
                      size_t text_bytes)
{
    if (size_parse(value, bytes) < 0)
        return fail(text, text_bytes, "%s: '%s' is not a size (examples: 64K, 256M, 4G)", option, value);
    if (*bytes < min || *bytes > max || *bytes % PAGE_BYTES)
        return fail(text, text_bytes, "%s: %s is not a multiple of 4096 between %llu and %llu", option, value,
                    (unsigned long long)min, (unsigned long long)max);
    return 0;
}

static int parse_hidden(struct options *options, const char *value, char *text, size_t text_bytes)
{
    for (const char *word = value; *word;) {
        size_t length = strcspn(word, ",");
        enum feature feature = feature_find(word, length);

        if (feature == FEATURES)
            return fail(text, text_bytes, "--hide-features: no feature named '%.*s'", (int)length, word);
        options->hidden[feature] = true;
        word += length;
        word += *word == ',';
    }
    return 0;
}

static int parse_number(const char *option, const char *value, uint64_t max, uint64_t *number, char *text,
                        size_t text_bytes)
{
    if (number_parse(value, 0, max, number) < 0)
        return fail(text, text_bytes, "%s: '%s' is not a number from 0 to %llu", option, value,
                    (unsigned long long)max);
    return 0;
}

static int check_uri(const char *option, const char *uri, char *text, size_t text_bytes)
{
    if (!donor_uri_valid(uri))
        return fail(text, text_bytes, "%s: '%s' is not an NBD URI such as nbd://HOST:PORT/EXPORT", option, uri);
    return 0;
}

static int add_donor(struct options *options, char *uri, char *text, size_t text_bytes)
{
    if (options->n_donors == DONORS_MAX - 1) /* one is for the backup */
        return fail(text, text_bytes, "--donor: at most %d", DONORS_MAX - 1);
    options->donors[options->n_donors++] = uri;
    return check_uri("--donor", uri, text, text_bytes);
}

static int parse_extent(struct options *options, const char *value, char *text, size_t text_bytes)
{
    int rc = parse_size("--extent", value, 64 << 10, 1ull << 40, &options->extent_bytes, text, text_bytes);

    if (rc == 0 && (options->extent_bytes & (options->extent_bytes - 1)))
        return fail(text, text_bytes, "--extent: %s is not a power of two", value);
    return rc;
}

static int parse_contents(struct options *options, const char *value, char *text, size_t text_bytes)
{
    options->has_contents = true;
    options->keep = strcmp(value, "keep") == 0;
    if (!options->keep && strcmp(value, "fresh") != 0)
        return fail(text, text_bytes, "--contents: '%s' is neither fresh nor keep", value);
    return 0;
}

static int parse_on_loss(struct options *options, const char *value, char *text, size_t text_bytes)
{
    options->poison_on_loss = strcmp(value, "poison") == 0;
    if (!options->poison_on_loss && strcmp(value, "wait") != 0)
        return fail(text, text_bytes, "--on-donor-loss: '%s' is neither wait nor poison", value);
    return 0;
}

/* To wait is what is done where the kernel cannot poison. */
static int parse_lost_pages(struct options *options, const char *value, char *text, size_t text_bytes)
{
    bool wait = strcmp(value, "wait") == 0;

    if (!wait && strcmp(value, "poison") != 0)
        return fail(text, text_bytes, "--lost-pages: '%s' is neither poison nor wait", value);
    options->hidden[FEATURE_POISON] = options->hidden[FEATURE_POISON] || wait;
    return 0;
}

static int parse_seconds(const char *option, const char *value, uint32_t *seconds, char *text, size_t text_bytes)
{
    uint64_t number = 0;
    int rc = parse_number(option, value, 1000000, &number, text, text_bytes);

    *seconds = (uint32_t)number;
    return rc;
}

static int parse_replicas(struct options *options, const char *value, char *text, size_t text_bytes)
{
    uint64_t number = 0;

    if (number_parse(value, 1, REPLICAS_MAX, &number) < 0)
        return fail(text, text_bytes, "--replicas: '%s' is neither 1 nor 2", value);
    options->replicas = (uint32_t)number;
    return 0;
}

/* How copies are kept. */
static int parse_copies(struct options *options, int id, char *value, char *text, size_t text_bytes)
{
    switch (id) {
    case OPT_REPLICAS:
        return parse_replicas(options, value, text, text_bytes);
    case OPT_BACKUP:
        options->backup = value;
        return check_uri("--backup", value, text, text_bytes);
    case OPT_POOL:
        return parse_size("--pool", value, EXTENT_MIN_BYTES, 1ull << 46, &options->pool_bytes, text, text_bytes);
    case OPT_REBUILD_AFTER:
        return parse_seconds("--rebuild-after", value, &options->rebuild_after_s, text, text_bytes);
    case OPT_REBUILD_RATE:
        return parse_size("--rebuild-rate", value, 0, 1ull << 46, &options->rebuild_rate, text, text_bytes);
    case OPT_ON_LOSS:
        return parse_on_loss(options, value, text, text_bytes);
    case OPT_LOST_PAGES:
        return parse_lost_pages(options, value, text, text_bytes);
    case OPT_POISON_AFTER:
        return parse_seconds("--poison-after", value, &options->poison_after_s, text, text_bytes);
    default: {
        uint64_t number = 0;
        int rc = parse_number("--slow-us", value, 60000000, &number, text, text_bytes);

        options->slow_us = (uint32_t)number;
        return rc;
    }
    }
}

/* Options with a number or a list. */
static int parse_value(struct options *options, int id, char *value, char *text, size_t text_bytes)
{
    uint64_t number = 0;
    int rc = 0;

    switch (id) {
    case OPT_CACHE:
        return parse_size("--cache", value, CACHE_MIN_BYTES, 1ull << 46, &options->cache_bytes, text, text_bytes);
    case OPT_EXTENT:
        return parse_extent(options, value, text, text_bytes);
    case OPT_READAHEAD:
        return parse_size("--readahead", value, 0, READAHEAD_MAX_BYTES, &options->readahead_bytes, text, text_bytes);
    case OPT_POLL:
        rc = parse_number("--poll-us", value, 10000, &number, text, text_bytes);
        options->poll_us = (uint32_t)number;
        return rc;
    case OPT_PEER_UID:
        rc = parse_number("--peer-uid", value, UINT32_MAX - 1, &number, text, text_bytes);
        if (rc == 0 && options->n_peer_uids == PEER_UIDS_MAX)
            return fail(text, text_bytes, "--peer-uid: at most %d", PEER_UIDS_MAX);
        if (rc == 0)
            options->peer_uids[options->n_peer_uids++] = (uid_t)number;
        return rc;
    case OPT_LOG_LEVEL:
        if (log_level_parse(value, &options->log_level) < 0)
            return fail(text, text_bytes, "--log-level: '%s' is none of error, warning, info, debug", value);
        return 0;
    default:
        return parse_hidden(options, value, text, text_bytes);
    }
}

static int parse_one(struct options *options, int id, char *value, char *text, size_t text_bytes)
{
    switch (id) {
    case OPT_LISTEN:
        options->listen = value;
        return 0;
    case OPT_CONTROL:
        options->control = value;
        return 0;
    case OPT_LOG_FILE:
        options->log_file = value;
        return 0;
    case OPT_DONOR:
        return add_donor(options, value, text, text_bytes);
    case OPT_CONTENTS:
        return parse_contents(options, value, text, text_bytes);
    case OPT_STATE:
        options->state = value;
        return 0;
    case OPT_RESUME:
        options->resume = true;
        return 0;
    case OPT_EXIT_WITH_CLIENT:
        options->exit_with_client = true;
        return 0;
    case OPT_FIFO:
        options->fifo = true;
        return 0;
    case OPT_LIBNBD:
        options->libnbd_only = true;
        return 0;
    case OPT_SAME_HOST:
        options->allow_same_host = true;
        return 0;
    case OPT_REPLICAS:
    case OPT_BACKUP:
    case OPT_POOL:
    case OPT_REBUILD_AFTER:
    case OPT_REBUILD_RATE:
    case OPT_SLOW:
    case OPT_ON_LOSS:
    case OPT_POISON_AFTER:
    case OPT_LOST_PAGES:
        return parse_copies(options, id, value, text, text_bytes);
    case OPT_PROBE:
        options->probe = true;
        return 0;
    case OPT_HELP:
        options->help = true;
        return 0;
    case OPT_VERSION:
        options->version = true;
        return 0;
    default:
        return parse_value(options, id, value, text, text_bytes);
    }
}

/* What the state file knows may not be said again: it could only be wrong. */
static int check_resume(const struct options *options, char *text, size_t text_bytes)
{
    if (!options->state)
        return fail(text, text_bytes, "--resume: --state FILE is missing: where is the page map?");
    if (options->cache_bytes || options->n_donors || options->extent_bytes || options->has_contents)
        return fail(text, text_bytes,
                    "--resume: --cache, --donor, --extent and --contents are in the state file; leave them out");
    if (options->replicas || options->allow_same_host || options->backup || options->pool_bytes)
        return fail(
            text, text_bytes,
            "--resume: --replicas, --allow-same-host, --backup and --pool are in the state file; leave them out");
    return 0;
}

static int check_complete(const struct options *options, char *text, size_t text_bytes)
{
    if (options->probe || options->help || options->version)
        return 0;
    if (!options->listen)
        return fail(text, text_bytes, "--listen SOCKET is missing");
    if (!options->control)
        return fail(text, text_bytes, "--control SOCKET is missing");
    if (options->resume)
        return check_resume(options, text, text_bytes);
    if (!options->cache_bytes)
        return fail(text, text_bytes, "--cache SIZE is missing");
    if (!options->n_donors)
        return fail(text, text_bytes, "--donor URI is missing: at least one is needed");
    if (options->keep && (options->replicas > 1 || options->backup))
        return fail(text, text_bytes, "--contents keep: what the exports hold has one copy; leave out %s",
                    options->backup ? "--backup" : "--replicas");
    return 0;
}

int options_parse(struct options *options, int argc, char **argv, char *text, size_t text_bytes)
{
    int id;

    *options = (struct options){
        .readahead_bytes = 256 << 10,
        .poll_us = 50,
        .log_level = LOG_INFO,
        .rebuild_after_s = 10,
        .rebuild_rate = 256ull << 20,
        .poison_after_s = 30,
        .slow_us = 50000,
    };
    opterr = 0;
    while ((id = getopt_long(argc, argv, ":", long_options, NULL)) != -1) {
        if (id == '?')
            return fail(text, text_bytes, "unknown option '%s'", argv[optind - 1]);
        if (id == ':')
            return fail(text, text_bytes, "option '%s' needs a value", argv[optind - 1]);
        int rc = parse_one(options, id, optarg, text, text_bytes);

        if (rc < 0)
            return rc;
    }
    if (optind < argc)
        return fail(text, text_bytes, "unexpected argument '%s'", argv[optind]);
    return check_complete(options, text, text_bytes);
}
