/* SPDX-License-Identifier: MIT */
#include "say.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void text_set(struct text *text, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(text->s, sizeof(text->s), format, args);
    va_end(args);
}

void say(const char *format, ...)
{
    static const char prefix[] = "ghostbox-shim: ";
    char line[sizeof(prefix) + TEXT_BYTES + 64];
    int saved_errno = errno;
    va_list args;

    memcpy(line, prefix, sizeof(prefix));
    va_start(args, format);
    vsnprintf(line + sizeof(prefix) - 1, sizeof(line) - sizeof(prefix), format, args);
    va_end(args);
    size_t length = strlen(line);

    line[length++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, length);

    (void)written; /* there is nowhere to report a failure */
    errno = saved_errno;
}
