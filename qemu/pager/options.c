/* SPDX-License-Identifier: MIT */
#include "options.h"

#include "option_table.h"
#include "page/pages.h"
#include "size.h"

#include <stdio.h>
#include <string.h>

#define SIZE_MAX_BYTES (1ull << 46)
#define SECONDS_MAX    1000000u

static int donor_take(void *values, const char *text, struct option_error *error);
static int backup_take(void *values, const char *text, struct option_error *error);
static int contents_take(void *values, const char *text, struct option_error *error);
static int extent_take(void *values, const char *text, struct option_error *error);
static int peer_uid_take(void *values, const char *text, struct option_error *error);
static int hidden_take(void *values, const char *text, struct option_error *error);

#define SETS(member)    .offset = offsetof(struct options, member)
#define PAGES(from, to) .min = (from), .max = (to), .unit = PAGE_BYTES

static const struct option_spec specs[] = {
    {"listen", "SOCKET", OPTION_TEXT, SETS(listen), .help = "where the shim in QEMU connects"},
    {"control", "SOCKET", OPTION_TEXT, SETS(control), .help = "control socket, JSON lines"},
    {"cache", "SIZE", OPTION_SIZE, PAGES(1u << 20, SIZE_MAX_BYTES), SETS(cache_bytes),
     .help = "how much remote memory is kept on this host at most"},
    {"donor", "URI", OPTION_OTHER, .take = donor_take,
     .help = "an NBD export: nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH or, over TLS, "
             "nbds://IDENTITY@HOST:PORT/EXPORT?tls-psk-file=FILE; may be given several times"},
    {"contents", "fresh|keep", OPTION_CHOICE, SETS(contents), .wrong = "neither fresh nor keep",
     .take = contents_take,
     .help = "fresh: the memory begins as zeroes; keep: it begins with what the exports hold (default fresh)"},
    {"replicas", "N", OPTION_NUMBER, .min = 1, .max = REPLICAS_MAX, SETS(replicas), .wrong = "neither 1 nor 2",
     .help = "how many donors, on different hosts, hold each extent (default 1)"},
    {"allow-same-host", NULL, OPTION_FLAG, SETS(allow_same_host),
     .help = "the copies of an extent may be on one host, if their URIs differ"},
    {"backup", "URI", OPTION_TEXT, SETS(backup), .take = backup_take,
     .help = "an NBD export as large as the pool, which gets one more copy of all memory, written behind"},
    {"pool", "SIZE", OPTION_SIZE, PAGES(EXTENT_MIN_BYTES, SIZE_MAX_BYTES), SETS(pool_bytes),
     .help = "memory that regions may use (default: all that fits); the donors' memory beyond it is spare room for "
             "copies that are lost or moved"},
    {"rebuild-after", "S", OPTION_NUMBER, .max = SECONDS_MAX, SETS(rebuild_after_s), .standard = "10",
     .help = "seconds after which the copies on a donor that is down are made anew on other donors"},
    {"rebuild-rate", "SIZE", OPTION_SIZE, PAGES(0, SIZE_MAX_BYTES), SETS(rebuild_rate), .standard = "256M",
     .help = "bytes a second that may be sent to make copies anew; 0: no limit"},
    {"slow-us", "N", OPTION_NUMBER, .max = 60000000, SETS(slow_us), .standard = "50000",
     .help = "a donor is slow if more than 1 % of its answers take longer than so many microseconds"},
    {"on-donor-loss", "wait|poison", OPTION_CHOICE, SETS(on_loss), .standard = "wait",
     .wrong = "neither wait nor poison",
     .help = "what happens to pages whose last copy is on a donor that is down: their readers wait for the donor, or "
             "the pages are given up after --poison-after"},
    {"poison-after", "S", OPTION_NUMBER, .max = SECONDS_MAX, SETS(poison_after_s), .standard = "30",
     .help = "seconds for which a donor has to be down before --on-donor-loss poison gives its pages up"},
    {"lost-pages", "poison|wait", OPTION_CHOICE, SETS(lost_pages), .standard = "poison",
     .wrong = "neither poison nor wait",
     .help = "what happens to a program that touches a lost page: it gets SIGBUS, or it waits for ever (for QEMU "
             "without KVM, which SIGBUS would end)"},
    {"extent", "SIZE", OPTION_SIZE, PAGES(64u << 10, 1ull << 40), SETS(extent_bytes), .take = extent_take,
     .help = "size of the pieces in which the memory is spread over the donors, a power of two (default: 16M or what "
             "fits)"},
    {"readahead", "SIZE", OPTION_SIZE, PAGES(0, READAHEAD_MAX_BYTES), SETS(readahead_bytes), .standard = "256K",
     .help = "largest window that is read ahead; 0 turns readahead off"},
    {"poll-us", "N", OPTION_NUMBER, .max = 10000, SETS(poll_us), .standard = "50",
     .help = "microseconds for which the fault thread polls for the next event before it sleeps"},
    {"peer-uid", "UID", OPTION_OTHER, .take = peer_uid_take,
     .help = "a user who may connect, besides root and the pager's own; may be given several times"},
    {"exit-with-client", NULL, OPTION_FLAG, SETS(exit_with_client),
     .help = "when the process that uses the memory has ended, trim the exports and end"},
    {"state", "FILE", OPTION_TEXT, SETS(state),
     .help = "keep the page map in FILE (on a tmpfs), so that another pager can go on if this one dies"},
    {"resume", NULL, OPTION_FLAG, SETS(resume),
     .help = "go on with the page map in --state FILE, which also has the cache's size, the donors and the contents"},
    {"log-file", "FILE", OPTION_TEXT, SETS(log_file), .help = "append log lines to FILE instead of stderr"},
    {"log-level", "error|warning|info|debug", OPTION_CHOICE, SETS(log_level), .standard = "info",
     .wrong = "none of error, warning, info, debug", .help = "which log lines are written"},
    {"probe", NULL, OPTION_FLAG, SETS(probe),
     .help =
         "print what this kernel's userfaultfd can do as JSON, and end; with --state, also whether this pager could "
         "go on with that file, which may be in use (exit 1 if it could not)"},
    {"version", NULL, OPTION_END, SETS(version), .help = "print the version, and end"},
    {"help", NULL, OPTION_END, SETS(help), .help = "print this, and end"},
    {"hide-features", "A,B", OPTION_OTHER, .for_tests = true, .take = hidden_take,
     .help = "do as if the kernel lacked these features"},
    {"fifo", NULL, OPTION_FLAG, .for_tests = true, SETS(fifo),
     .help = "evict pages in the order in which they came, as a reference for the reclaim policy"},
    {"no-seccomp", NULL, OPTION_FLAG, .for_tests = true, SETS(no_seccomp), .help = "allow every system call"},
    {"libnbd", NULL, OPTION_FLAG, .for_tests = true, SETS(libnbd_only),
     .help = "libnbd moves all bytes but those under TLS"},
};

static const struct option_table table = {
    .usage =
        "usage: ghostbox-pager --listen SOCKET --control SOCKET --cache SIZE --donor URI [--donor URI]… "
        "[options]\n"
        "\n"
        "Serves the page faults of remote memory: keeps a bounded cache on this host, and the rest on NBD exports.\n"
        "\n",
    .specs = specs,
    .n_specs = sizeof(specs) / sizeof(specs[0]),
    .not_a_size = "not a size (examples: 64K, 256M, 4G)",
    .not_a_number = "not a number",
    .needs_value = "option '%s' needs a value",
    .not_an_option = "unexpected argument '%s'",
    .example =
        "\n"
        "Example:\n"
        "  ghostbox-pager --listen p.sock --control c.sock --cache 256M --donor nbd://127.0.0.1:10809/lease1\n",
};

void options_usage(void)
{
    option_table_help(&table);
}

static int uri_check(const char *option, const char *uri, struct option_error *error)
{
    const char *fault = donor_uri_fault(uri);

    return fault ? option_fail(error, "%s: '%s' %s", option, uri, fault) : 0;
}

static int donor_take(void *values, const char *text, struct option_error *error)
{
    struct options *options = values;

    if (options->n_donors == DONORS_MAX - 1) { /* the last place is for the backup */
        return option_fail(error, "--donor: at most %d", DONORS_MAX - 1);
    }
    options->donors[options->n_donors++] = text;
    return uri_check("--donor", text, error);
}

static int backup_take(void *values, const char *text, struct option_error *error)
{
    (void)values;
    return uri_check("--backup", text, error);
}

static int contents_take(void *values, const char *text, struct option_error *error)
{
    struct options *options = values;

    (void)text, (void)error;
    options->has_contents = true;
    return 0;
}

static int extent_take(void *values, const char *text, struct option_error *error)
{
    const struct options *options = values;

    return (options->extent_bytes & (options->extent_bytes - 1)) == 0
               ? 0
               : option_fail(error, "--extent: %s is not a power of two", text);
}

static int peer_uid_take(void *values, const char *text, struct option_error *error)
{
    struct options *options = values;
    uint64_t uid;

    if (number_parse(text, 0, UINT32_MAX - 1, &uid) < 0) {
        return option_fail(error, "--peer-uid: '%s' is not a number from 0 to %u", text, UINT32_MAX - 1);
    }
    if (options->n_peer_uids == PEER_UIDS_MAX) {
        return option_fail(error, "--peer-uid: at most %d", PEER_UIDS_MAX);
    }
    options->peer_uids[options->n_peer_uids++] = (uid_t)uid;
    return 0;
}

static int hidden_take(void *values, const char *text, struct option_error *error)
{
    struct options *options = values;

    for (const char *word = text; *word != '\0';) {
        size_t length = strcspn(word, ",");
        enum feature feature = feature_find(word, length);

        if (feature == FEATURES) {
            return option_fail(error, "--hide-features: no feature named '%.*s'", (int)length, word);
        }
        options->hidden[feature] = true;
        word += length;
        word += *word == ',';
    }
    return 0;
}

/* Refuses options whose values are in the state file, because another value could only be wrong. */
static int check_resume(const struct options *options, struct option_error *error)
{
    if (options->state == NULL) {
        return option_fail(error, "--resume: --state FILE is missing: where is the page map?");
    }
    if (options->cache_bytes || options->n_donors || options->extent_bytes || options->has_contents) {
        return option_fail(
            error, "--resume: --cache, --donor, --extent and --contents are in the state file; leave them out");
    }
    if (options->replicas || options->allow_same_host || options->backup || options->pool_bytes) {
        return option_fail(
            error,
            "--resume: --replicas, --allow-same-host, --backup and --pool are in the state file; leave them out");
    }
    return 0;
}

static int check_complete(const struct options *options, struct option_error *error)
{
    if (options->probe || options->help || options->version) {
        return 0;
    }
    if (options->listen == NULL) {
        return option_fail(error, "--listen SOCKET is missing");
    }
    if (options->control == NULL) {
        return option_fail(error, "--control SOCKET is missing");
    }
    if (options->resume) {
        return check_resume(options, error);
    }
    if (options->cache_bytes == 0) {
        return option_fail(error, "--cache SIZE is missing");
    }
    if (options->n_donors == 0) {
        return option_fail(error, "--donor URI is missing: at least one is needed");
    }
    if (options->contents == CONTENTS_KEEP && (options->replicas > 1 || options->backup != NULL)) {
        return option_fail(error, "--contents keep: what the exports hold has one copy; leave out %s",
                           options->backup != NULL ? "--backup" : "--replicas");
    }
    return 0;
}

int options_parse(struct options *options, int argc, char **argv, char *text, size_t text_bytes)
{
    struct option_error error;
    int rc;

    *options = (struct options){0};
    rc = option_table_read(&table, options, argc, argv, &error);
    /* With --lost-pages wait the pager does as if the kernel could not poison pages: then readers wait. */
    options->hidden[FEATURE_POISON] = options->hidden[FEATURE_POISON] || options->lost_pages == LOST_PAGES_WAIT;
    if (rc == 0) {
        rc = check_complete(options, &error);
    }
    if (rc < 0) {
        snprintf(text, text_bytes, "%s", error.text);
    }
    return rc;
}
