/* SPDX-License-Identifier: MIT */
/* Commands that write a pattern and check it. */
#include "client.h"

uint64_t mix(uint64_t x) /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

uint64_t pattern(uint64_t seed, uint64_t word)
{
    return mix(seed * 0x2545f4914f6cdd1dull + word) | 1;
}

static int fill(struct call *call)
{
    uint64_t first, n, seed = call_number(call, "seed", 1);

    call_pages(call, &first, &n);
    for (uint64_t word = first * WORDS_A_PAGE; word < (first + n) * WORDS_A_PAGE; word++)
        word_store(&call->memory->words[word], pattern(seed, word));
    call_field(call, "pages", n);
    return 0;
}

static int zero(struct call *call)
{
    uint64_t first, n;

    call_pages(call, &first, &n);
    for (uint64_t word = first * WORDS_A_PAGE; word < (first + n) * WORDS_A_PAGE; word++)
        word_store(&call->memory->words[word], 0);
    return 0;
}

/* Checks that the words are as fill wrote them with this seed; with seed=0, that they are zero. */
static int verify(struct call *call)
{
    uint64_t first, n, seed = call_number(call, "seed", 1);

    call_pages(call, &first, &n);
    for (uint64_t word = first * WORDS_A_PAGE; word < (first + n) * WORDS_A_PAGE; word++) {
        uint64_t expected = seed ? pattern(seed, word) : 0;
        uint64_t got = word_load(&call->memory->words[word]);

        if (got != expected)
            return call_fail_word(call, word, expected, got);
    }
    call_field(call, "words", n * WORDS_A_PAGE);
    return 0;
}

static int read_word(struct call *call)
{
    uint64_t first, n;

    call_pages(call, &first, &n);
    call_field(call, "value", word_load(&call->memory->words[first * WORDS_A_PAGE]));
    return 0;
}

static int write_word(struct call *call)
{
    uint64_t first, n;

    call_pages(call, &first, &n);
    word_store(&call->memory->words[first * WORDS_A_PAGE], call_number(call, "value", 1));
    return 0;
}

const struct command pattern_commands[] = {
    {"fill", fill}, {"zero", zero}, {"verify", verify}, {"read", read_word}, {"write", write_word}, {NULL, NULL},
};
