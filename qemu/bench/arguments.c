/* SPDX-License-Identifier: MIT */
#include "bench.h"

#include "common/size.h"

#include <string.h>

const char *argument_text(struct arguments *args, const char *key, const char *otherwise)
{
    size_t length = strlen(key);

    for (int i = 0; i < args->n_words; i++) {
        const char *word = args->words[i];

        if (strncmp(word, key, length) == 0 && word[length] == '=') {
            args->used |= 1ull << i;
            return word + length + 1;
        }
    }
    return otherwise;
}

uint64_t argument_number(struct arguments *args, const char *key, uint64_t otherwise, uint64_t max)
{
    const char *text = argument_text(args, key, NULL);
    uint64_t value = otherwise;

    if (text && number_parse(text, 0, max, &value) < 0)
        fail("%s=%s is not a number from 0 to %llu", key, text, (unsigned long long)max);
    return value;
}

uint64_t argument_size(struct arguments *args, const char *key, uint64_t otherwise)
{
    const char *text = argument_text(args, key, NULL);
    uint64_t value = otherwise;

    if (text && size_parse(text, &value) < 0)
        fail("%s=%s is not a size (examples: 64K, 256M)", key, text);
    return value;
}

void arguments_check(const struct arguments *args)
{
    for (int i = 0; i < args->n_words; i++)
        if (!(args->used & (1ull << i)))
            fail("the command does not know %s", args->words[i]);
}
