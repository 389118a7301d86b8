/* SPDX-License-Identifier: MIT */
/* Log lines for the C programs: "2026-11-21T10:00:00.123Z level program: message" on stderr or into a file. */
#ifndef GHOSTBOX_LOG_H
#define GHOSTBOX_LOG_H

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG, LOG_LEVELS };

/*
 * Opens the log. The main thread calls it before it starts others. `program` is not copied. path NULL: stderr. Lines
 * of a level above `level` are dropped. Returns 0 or -errno.
 */
int log_open(const char *program, const char *path, enum log_level level);
/* Reads "error", "warning", "info" or "debug". Returns 0, or -EINVAL for any other name. */
int log_level_parse(const char *name, enum log_level *level);

/* Writes one line, at most 1024 bytes of it. In any thread; errno stays as it is. */
void log_write(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define log_error(...)   log_write(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_write(LOG_WARNING, __VA_ARGS__)
#define log_info(...)    log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)   log_write(LOG_DEBUG, __VA_ARGS__)

#endif
