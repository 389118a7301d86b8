/* SPDX-License-Identifier: MIT */
/*
 * A checksum of one page: CRC32C in four lanes (the processor's crc32 takes three cycles and starts one a cycle),
 * whose results are folded by a fifth. Finds every error of up to 32 bits in a row, and others with 1 - 2^-32.
 */
#ifndef GHOSTBOX_CHECKSUM_H
#define GHOSTBOX_CHECKSUM_H

#include <stdint.h>

/* bytes: 4096, aligned to 8. */
uint32_t checksum_page(const uint8_t *bytes);
/* The same without the processor's instruction; for processors that lack it, and to test the other. */
uint32_t checksum_page_portable(const uint8_t *bytes);

#endif
