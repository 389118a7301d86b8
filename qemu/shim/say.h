/* SPDX-License-Identifier: MIT */
/* The shim's messages for people, without allocations: each is one write(2) to stderr. In any thread. */
#ifndef GHOSTBOX_SHIM_SAY_H
#define GHOSTBOX_SHIM_SAY_H

#define TEXT_BYTES 512

/* Why something failed, for people. */
struct text {
    char s[TEXT_BYTES];
};

/* Writes a reason; it is cut at TEXT_BYTES. */
__attribute__((format(printf, 2, 3))) void text_set(struct text *text, const char *format, ...);
/* Prints "ghostbox-shim: MESSAGE". errno stays as it is. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

#endif
