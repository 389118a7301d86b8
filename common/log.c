/* SPDX-License-Identifier: MIT */
#include "log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 1024

static const char *const level_names[] = {
    [LOG_ERROR] = "error",
    [LOG_WARNING] = "warning",
    [LOG_INFO] = "info",
    [LOG_DEBUG] = "debug",
};
static_assert(sizeof(level_names) / sizeof(level_names[0]) == LOG_LEVELS, "a name for every level");

/* log_open() sets it once, before other threads start. Until then lines go to stderr. */
static struct {
    const char *program;
    int fd;
    enum log_level level;
} state = {.program = "ghostbox", .fd = STDERR_FILENO, .level = LOG_INFO};

int log_open(const char *program, const char *path, enum log_level level)
{
    state.program = program;
    state.level = level;
    if (path == NULL) {
        return 0;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) {
        return -errno;
    }
    state.fd = fd;
    return 0;
}

int log_level_parse(const char *name, enum log_level *level)
{
    for (int i = 0; i < LOG_LEVELS; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *level = (enum log_level)i;
            return 0;
        }
    }
    return -EINVAL;
}

static size_t prefix_format(char *line, size_t size, enum log_level level)
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t used = strftime(line, size, "%Y-%m-%dT%H:%M:%S", &utc);
    int more = snprintf(line + used, size - used, ".%03ldZ %s %s: ", now.tv_nsec / 1000000, level_names[level],
                        state.program);
    used += more > 0 ? (size_t)more : 0;
    return used < size ? used : size - 1;
}

void log_write(enum log_level level, const char *format, ...)
{
    if (level > state.level) {
        return;
    }
    int saved_errno = errno;
    char line[LINE_MAX_BYTES];
    size_t used = prefix_format(line, sizeof(line), level);
    va_list args;
    va_start(args, format);
    int more = vsnprintf(line + used, sizeof(line) - used, format, args);
    va_end(args);
    used += more > 0 ? (size_t)more : 0;
    if (used > sizeof(line) - 1) {
        used = sizeof(line) - 1;
    }
    line[used] = '\n';
    /* One write() a line, so that lines of several threads, or of several processes with one file, do not mix. */
    if (write(state.fd, line, used + 1) < 0) {
        /* There is nowhere to report that the log cannot be written. */
    }
    errno = saved_errno;
}
