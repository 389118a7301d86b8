/* SPDX-License-Identifier: MIT */
/*
 * The checksum of a page: CRC32C in four lanes, whose results are folded by a fifth. (The processor's crc32
 * instruction takes three cycles, and one can start in each cycle.) It finds each error of up to 32 bits in a row,
 * and other errors with a probability of 1 - 2^-32.
 */
#ifndef GHOSTBOX_CHECKSUM_H
#define GHOSTBOX_CHECKSUM_H

#include <stdint.h>

/* Returns the checksum of PAGE_BYTES bytes. */
uint32_t checksum_page(const uint8_t *bytes);
/* The same without the crc32 instruction, for processors that lack it, and to test checksum_page(). */
uint32_t checksum_page_portable(const uint8_t *bytes);

#endif
