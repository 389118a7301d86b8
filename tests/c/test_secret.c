/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "donor/secret.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DEADLINE_MS 20000

static char path[] = "/tmp/gb-test-secret-XXXXXX";

/* The file has this line alone. */
static void file_write(const char *line)
{
    FILE *file = fopen(path, "w");
    CHECK(file != NULL);
    if (file == NULL) {
        return;
    }
    fputs(line, file);
    fclose(file);
    CHECK_EQUAL(chmod(path, 0600), 0);
}

static struct secret *make(void)
{
    struct nbds_uri uri = {0};
    snprintf(uri.identity, sizeof(uri.identity), "a");
    snprintf(uri.key_path, sizeof(uri.key_path), "%s", path);
    return secret_new(&uri);
}

/* Returns the first byte of the key, or -errno. */
static int first_byte(struct secret *secret, char why[256])
{
    struct psk psk = {0};
    int rc = secret_get(secret, &psk, why, 256);
    return rc < 0 ? rc : psk.bytes[0];
}

/* Waits until first_byte() returns this. Returns whether it did in time. */
static bool becomes(struct secret *secret, int wanted)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    char why[256];
    for (int ms = 0; ms < DEADLINE_MS; ms++) {
        if (first_byte(secret, why) == wanted) {
            return true;
        }
        nanosleep(&pause, NULL);
    }
    return false;
}

static void a_key_is_read_again_only_when_that_is_asked_for(void)
{
    char why[256];
    struct secret *secret = make();
    file_write("a:11111111111111111111111111111111\n");
    CHECK_EQUAL(secret_read(secret, why, sizeof(why)), 0);
    file_write("a:22222222222222222222222222222222\n");
    CHECK_EQUAL(first_byte(secret, why), 0x11);
    secret_ask(secret);
    CHECK(becomes(secret, 0x22));
    secret_free(secret);
}

static void a_key_whose_file_is_gone_stays(void)
{
    char why[256];
    struct secret *secret = make();
    file_write("a:11111111111111111111111111111111\n");
    CHECK_EQUAL(secret_read(secret, why, sizeof(why)), 0);
    unlink(path);
    CHECK_EQUAL(secret_read(secret, why, sizeof(why)), -ENOENT);
    CHECK_EQUAL(first_byte(secret, why), 0x11);
    secret_free(secret);
}

static void a_key_that_is_not_there_is_looked_for_until_it_is(void)
{
    char why[256];
    unlink(path);
    struct secret *secret = make();
    CHECK_EQUAL(first_byte(secret, why), -EAGAIN);
    CHECK_TEXT(why, "");
    CHECK(becomes(secret, -ENOENT));
    first_byte(secret, why);
    CHECK(strstr(why, "cannot be opened: No such file or directory") != NULL);
    file_write("a:33333333333333333333333333333333\n");
    CHECK(becomes(secret, 0x33));
    secret_free(secret);
}

static void a_secret_may_be_freed_while_its_file_is_to_be_read(void)
{
    char why[256];
    file_write("a:11111111111111111111111111111111\n");
    for (int i = 0; i < 100; i++) {
        struct secret *secret = make();
        secret_ask(secret);
        secret_free(secret);
    }
    struct secret *last = make();
    CHECK_EQUAL(first_byte(last, why), -EAGAIN);
    CHECK(becomes(last, 0x11));
    secret_free(last);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(a_key_is_read_again_only_when_that_is_asked_for),
        TEST(a_key_whose_file_is_gone_stays),
        TEST(a_key_that_is_not_there_is_looked_for_until_it_is),
        TEST(a_secret_may_be_freed_while_its_file_is_to_be_read),
    };
    int descriptor = mkstemp(path);
    if (descriptor < 0 || secrets_start() < 0) {
        return 1;
    }
    close(descriptor);
    int status = TESTS_RUN(tests, argc, argv);
    unlink(path);
    return status;
}
