/* SPDX-License-Identifier: MIT */
#include "page/checksum.h"

#include "page/pages.h"

#include <string.h>

#define LANES     4u
#define WORDS     (PAGE_BYTES / sizeof(uint64_t))
#define CRC32C    0x82f63b78u /* Castagnoli's polynomial, reflected; RFC 3720 appendix B.4 */
#define LANE_INIT 0xffffffffu

static uint32_t crc_word_portable(uint32_t crc, uint64_t word)
{
    for (unsigned int byte = 0; byte < sizeof(word); byte++) {
        crc ^= (uint32_t)(word >> (byte * 8)) & 0xffu;
        for (unsigned int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (CRC32C & (0u - (crc & 1u)));
    }
    return crc;
}

static uint64_t word_at(const uint8_t *bytes, uint32_t word)
{
    uint64_t value;

    memcpy(&value, bytes + (size_t)word * sizeof(value), sizeof(value));
    return value;
}

uint32_t checksum_page_portable(const uint8_t *bytes)
{
    uint32_t lanes[LANES] = {LANE_INIT, LANE_INIT, LANE_INIT, LANE_INIT};
    uint32_t crc = LANE_INIT;

    for (uint32_t word = 0; word < WORDS; word++)
        lanes[word % LANES] = crc_word_portable(lanes[word % LANES], word_at(bytes, word));
    for (uint32_t lane = 0; lane < LANES; lane++)
        crc = crc_word_portable(crc, lanes[lane]);
    return crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>

__attribute__((target("sse4.2"))) static uint32_t checksum_page_sse42(const uint8_t *bytes)
{
    uint64_t a = LANE_INIT, b = LANE_INIT, c = LANE_INIT, d = LANE_INIT, crc = LANE_INIT;

    for (uint32_t word = 0; word < WORDS; word += LANES) {
        a = _mm_crc32_u64(a, word_at(bytes, word));
        b = _mm_crc32_u64(b, word_at(bytes, word + 1));
        c = _mm_crc32_u64(c, word_at(bytes, word + 2));
        d = _mm_crc32_u64(d, word_at(bytes, word + 3));
    }
    crc = _mm_crc32_u64(crc, a);
    crc = _mm_crc32_u64(crc, b);
    crc = _mm_crc32_u64(crc, c);
    return (uint32_t)_mm_crc32_u64(crc, d);
}

uint32_t checksum_page(const uint8_t *bytes)
{
    return __builtin_cpu_supports("sse4.2") ? checksum_page_sse42(bytes) : checksum_page_portable(bytes);
}
#else
uint32_t checksum_page(const uint8_t *bytes)
{
    return checksum_page_portable(bytes);
}
#endif
