/* SPDX-License-Identifier: MIT */
/*
 * free() and realloc() of the whole process, GnuTLS included: memory that is given back is zeroed first. GnuTLS takes
 * a block of malloc for each record that passes through it (tls.c: few do), which then holds bytes of a lease in the
 * clear; without this they would lie in the heap after the lease's end, until something else is written over them.
 * Other requests free nothing.
 *
 * The symbols of a program come before those of its libraries (ld.so(8)), and glibc's own are still there under
 * another name. Sanitizers bring their own malloc, so that builds with them do without this.
 */
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(__GLIBC__)
#define WIPES 1
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#undef WIPES
#endif
#endif

#ifdef WIPES
void __libc_free(void *memory);

__attribute__((visibility("default"))) void free(void *memory)
{
    if (memory != NULL) {
        explicit_bzero(memory, malloc_usable_size(memory));
    }
    __libc_free(memory);
}

__attribute__((visibility("default"))) void *realloc(void *memory, size_t bytes)
{
    size_t before = memory != NULL ? malloc_usable_size(memory) : 0;
    if (memory != NULL && bytes > 0 && bytes <= before) {
        return memory;
    }
    void *moved = bytes > 0 || memory == NULL ? malloc(bytes) : NULL;
    if (moved == NULL && bytes > 0) {
        return NULL;
    }
    if (moved != NULL && before > 0) {
        memcpy(moved, memory, before);
    }
    free(memory);
    return moved;
}
#endif
