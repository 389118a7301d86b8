/* SPDX-License-Identifier: MIT */
/* Plays files of the corpus without libFuzzer, as PROGRAM FILE..., and prints how many it has played. */
#include "tests/fuzz/drive.h"

#include <stdio.h>
#include <stdlib.h>

#define INPUT_MAX_BYTES (1u << 20)

static int file_play(const char *path, uint8_t *buffer)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return -1;
    }
    size_t size = fread(buffer, 1, INPUT_MAX_BYTES, file);
    int failed = ferror(file);
    fclose(file);
    if (failed) {
        perror(path);
        return -1;
    }
    drive_input(buffer, size);
    return 0;
}

int main(int argc, char **argv)
{
    uint8_t *buffer = malloc(INPUT_MAX_BYTES);
    int rc = buffer == NULL ? -1 : 0;
    for (int i = 1; i < argc && rc == 0; i++) {
        rc = file_play(argv[i], buffer);
    }
    free(buffer);
    if (rc < 0) {
        return EXIT_FAILURE;
    }
    printf("%d inputs played\n", argc - 1);
    return EXIT_SUCCESS;
}
