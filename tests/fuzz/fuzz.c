/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer's entry point. After a run in a build directory made with clang, `corpus.py pack` keeps only those inputs
 * that reach code which the seeds do not reach:
 *
 *   CC=clang meson setup BUILD
 *   ninja -C BUILD tests/fuzz/{memserver,control,wire,link}-fuzz
 *   tests/fuzz/corpus.py unpack memserver INPUTS
 *   BUILD/tests/fuzz/memserver-fuzz -max_len=8192 INPUTS
 *   tests/fuzz/corpus.py pack memserver BUILD INPUTS
 *
 * An input that broke an invariant is kept under its own name in the target's seeds/.
 */
#include "tests/fuzz/drive.h"

__attribute__((visibility("default"))) int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    drive_input(data, size);
    return 0;
}
