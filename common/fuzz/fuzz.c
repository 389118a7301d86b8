/* SPDX-License-Identifier: MIT */
/*
 * libFuzzer's entry. In a build directory made with clang:
 *
 *   CC=clang meson setup BUILD
 *   ninja -C BUILD memserver/memserver-fuzz common/control-fuzz qemu/pager/wire-fuzz qemu/pager/link-fuzz
 *   BUILD/memserver/memserver-fuzz -max_len=8192 NEW_INPUTS memserver/fuzz/corpus
 */
#include "common/fuzz/drive.h"

__attribute__((visibility("default"))) int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    drive_input(data, size);
    return 0;
}
