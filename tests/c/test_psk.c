/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "common/psk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KEY "000102030405060708090a0b0c0d0e0fA0Bf"

static char path[] = "/tmp/gb-psk-XXXXXX";

/* The lines that were visited, as text. */
struct visited {
    char text[512];
    unsigned stop_after;
    unsigned n;
};

static int visit(void *ctx, const char *identity, size_t identity_bytes, const struct psk *psk)
{
    struct visited *visited = ctx;
    size_t used = strlen(visited->text);
    snprintf(visited->text + used, sizeof(visited->text) - used, "%.*s=%u:%02x;", (int)identity_bytes, identity,
             psk->n_bytes, psk->bytes[psk->n_bytes - 1]);
    return ++visited->n == visited->stop_after;
}

static int file_read(const char *content, unsigned mode, struct visited *visited, char text[256])
{
    char name[sizeof(path)];
    memcpy(name, path, sizeof(path));
    int fd = mkstemp(name);
    CHECK(fd >= 0);
    CHECK_EQUAL(write(fd, content, strlen(content)), (long)strlen(content));
    fchmod(fd, mode);
    close(fd);
    *text = '\0';
    int rc = psk_file_read(name, visit, visited, text, 256);
    unlink(name);
    return rc;
}

static void a_key_is_hexadecimal_and_long_enough(void)
{
    struct psk psk = {0};
    CHECK_EQUAL(psk_parse(&psk, KEY, strlen(KEY)), 0);
    CHECK_EQUAL(psk.n_bytes, 18);
    CHECK_EQUAL(psk.bytes[1], 1);
    CHECK_EQUAL(psk.bytes[17], 0xbf);
    CHECK_EQUAL(psk_parse(&psk, KEY, 30), -EINVAL);
    CHECK_EQUAL(psk_parse(&psk, KEY, 33), -EINVAL);
    CHECK_EQUAL(psk_parse(&psk, "0001020304050607 8090a0b0c0d0e0f", 32), -EINVAL);
    psk_wipe(&psk);
    CHECK_EQUAL(psk.n_bytes, 0);
    CHECK_EQUAL(psk.bytes[17], 0);
}

static void lines_are_visited_and_comments_are_not(void)
{
    struct visited visited = {0};
    char text[256];
    CHECK_EQUAL(file_read("# keys\n\na:" KEY "\r\nb:c:" KEY, 0600, &visited, text), 0);
    CHECK_TEXT(visited.text, "a=18:bf;b:c=18:bf;");
    CHECK_TEXT(text, "");
}

static void a_visitor_can_stop(void)
{
    struct visited visited = {.stop_after = 1};
    char text[256];
    CHECK_EQUAL(file_read("a:" KEY "\nthis is no key\n", 0600, &visited, text), 0);
    CHECK_TEXT(visited.text, "a=18:bf;");
}

static void a_line_that_is_wrong_is_named_without_its_key(void)
{
    struct visited visited = {0};
    char text[256];
    CHECK_EQUAL(file_read("a:" KEY "\n" KEY "\n", 0600, &visited, text), -EINVAL);
    CHECK(strstr(text, "its line 2 is not IDENTITY:HEXKEY with an identity of 1 to 128 bytes") != NULL);
    CHECK(strstr(text, KEY) == NULL);
    CHECK_EQUAL(file_read("a:" KEY "0\n", 0600, &visited, text), -EINVAL);
    CHECK(strstr(text, "its line 1 has no key of 32 to 128 hexadecimal digits behind its last colon") != NULL);
    CHECK(strstr(text, KEY) == NULL);
}

static void a_file_that_others_may_read_is_refused(void)
{
    static const unsigned modes[] = {0640, 0604, 0620};
    for (unsigned i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        struct visited visited = {0};
        char text[256];
        CHECK_EQUAL(file_read("a:" KEY "\n", modes[i], &visited, text), -EPERM);
        CHECK(strstr(text, "is open to other users (mode 06") != NULL);
        CHECK(strstr(text, "chmod 600") != NULL);
        CHECK_EQUAL(visited.n, 0);
    }
}

static void a_line_that_is_too_long_is_refused_whole(void)
{
    struct visited visited = {0};
    char text[256], content[2200] = "a:" KEY "\n#";
    /* A reader that cuts lines at 1,023 bytes finds a key in the second half. */
    memset(content + strlen(content), 'x', 1022);
    strcat(content, "b:" KEY "\n");
    CHECK_EQUAL(file_read(content, 0600, &visited, text), -EINVAL);
    CHECK(strstr(text, "its line 2 has more than 1022 bytes") != NULL);
    CHECK_TEXT(visited.text, "a=18:bf;");
}

static void a_line_may_have_1022_bytes(void)
{
    struct visited visited = {0};
    char text[256], content[2200] = "#";
    memset(content + 1, 'x', 1021);
    strcat(content, "\na:" KEY);
    CHECK_EQUAL(file_read(content, 0600, &visited, text), 0);
    CHECK_TEXT(visited.text, "a=18:bf;");
}

static void a_file_that_is_too_large_is_refused(void)
{
    struct visited visited = {0};
    char name[sizeof(path)], text[256];
    memcpy(name, path, sizeof(path));
    int fd = mkstemp(name);
    CHECK_EQUAL(ftruncate(fd, (4 << 20) + 1), 0);
    close(fd);
    CHECK_EQUAL(psk_file_read(name, visit, &visited, text, sizeof(text)), -EFBIG);
    CHECK(strstr(text, "has more than 4 MiB") != NULL);
    unlink(name);
}

static void what_is_no_regular_file_is_refused_at_once(void)
{
    struct visited visited = {0};
    char fifo[sizeof(path)], text[256];
    memcpy(fifo, path, sizeof(path));
    close(mkstemp(fifo));
    unlink(fifo);
    CHECK_EQUAL(mkfifo(fifo, 0600), 0);
    CHECK_EQUAL(psk_file_read(fifo, visit, &visited, text, sizeof(text)), -EINVAL);
    CHECK(strstr(text, "is no regular file") != NULL);
    unlink(fifo);
    CHECK_EQUAL(psk_file_read("/", visit, &visited, text, sizeof(text)), -EINVAL);
    CHECK_EQUAL(psk_file_read("/dev/zero", visit, &visited, text, sizeof(text)), -EINVAL);
    CHECK_EQUAL(visited.n, 0);
}

static void a_file_that_is_not_there_is_said_so(void)
{
    struct visited visited = {0};
    char text[256];
    CHECK_EQUAL(psk_file_read("/no/such/file", visit, &visited, text, sizeof(text)), -ENOENT);
    CHECK_TEXT(text, "the key file /no/such/file cannot be opened: No such file or directory");
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(a_key_is_hexadecimal_and_long_enough),
        TEST(lines_are_visited_and_comments_are_not),
        TEST(a_visitor_can_stop),
        TEST(a_line_that_is_wrong_is_named_without_its_key),
        TEST(a_file_that_others_may_read_is_refused),
        TEST(a_line_that_is_too_long_is_refused_whole),
        TEST(a_line_may_have_1022_bytes),
        TEST(a_file_that_is_too_large_is_refused),
        TEST(what_is_no_regular_file_is_refused_at_once),
        TEST(a_file_that_is_not_there_is_said_so),
    };
    return TESTS_RUN(tests, argc, argv);
}
