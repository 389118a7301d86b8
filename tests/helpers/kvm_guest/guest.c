/* SPDX-License-Identifier: MIT */
/*
 * A guest without a kernel: a 32-bit multiboot program that writes and checks the memory of node 1. It also runs on
 * KVM where a 64-bit kernel does not. Results go to the debug console (port 0xe9); the exit status of QEMU is 1 if
 * all words were right, and 3 after a wrong word (isa-debug-exit, port 0xf4).
 *
 * It has no paging, no interrupts and one CPU. The compiler's command line sets BASE and BYTES.
 */
#include <stdint.h>

#define PAGE_BYTES 4096u
#define RANDOM_OPS 4000u

__asm__(".section .multiboot, \"a\"\n"
        ".align 4\n"
        ".long 0x1BADB002\n"  /* magic */
        ".long 0\n"           /* flags: none, as the ELF headers say where to load the program */
        ".long -0x1BADB002\n" /* checksum */
        ".text\n"
        ".globl start\n"
        "start:\n"
        "    cli\n"
        "    cld\n"
        "    mov $stack_end, %esp\n"
        "    call run\n"
        "1:  hlt\n"
        "    jmp 1b\n"
        ".bss\n"
        ".align 16\n"
        "    .skip 16384\n"
        "stack_end:\n"
        ".text\n");

static uint8_t generation[BYTES / PAGE_BYTES];

static void put_byte(uint16_t port, uint8_t byte)
{
    __asm__ volatile("outb %0, %1" : : "a"(byte), "Nd"(port));
}

static void put_text(const char *text)
{
    while (*text)
        put_byte(0xe9, (uint8_t)*text++);
}

static void put_hex(uint32_t value)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        put_byte(0xe9, (uint8_t) "0123456789abcdef"[value >> shift & 15]);
}

static uint32_t mix(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

static void end(uint8_t status)
{
    put_byte(0xf4, status);
    for (;;)
        __asm__ volatile("hlt");
}

/*
 * All words of a page have one value, for string instructions: if KVM interprets the guest, an instruction costs 1
 * us.
 */
static uint32_t page_value(uint32_t page)
{
    return mix(page + (uint32_t)generation[page] * 0x9e3779b9u);
}

static void page_check(uint32_t page)
{
    uint32_t *word = (uint32_t *)(BASE + page * PAGE_BYTES);
    uint32_t expected = page_value(page), left = PAGE_BYTES / 4;

    __asm__ volatile("repe scasl" : "+D"(word), "+c"(left) : "a"(expected) : "memory", "cc");
    if (word[-1] == expected)
        return;
    put_text("wrong word at ");
    put_hex((uint32_t)(uintptr_t)&word[-1]);
    put_text(": expected ");
    put_hex(expected);
    put_text(", got ");
    put_hex(word[-1]);
    put_text("\n");
    end(1);
}

static void page_write(uint32_t page)
{
    uint32_t *word = (uint32_t *)(BASE + page * PAGE_BYTES);
    uint32_t left = PAGE_BYTES / 4;

    generation[page]++;
    __asm__ volatile("rep stosl" : "+D"(word), "+c"(left) : "a"(page_value(page)) : "memory");
}

void run(void)
{
    uint32_t random = 1;

    for (uint32_t page = 0; page < BYTES / PAGE_BYTES; page++)
        page_write(page);
    put_text("written\n");
    for (uint32_t page = 0; page < BYTES / PAGE_BYTES; page++)
        page_check(page);
    put_text("checked in order\n");
    for (uint32_t i = 0; i < RANDOM_OPS; i++) {
        random = mix(random + i);
        uint32_t page = random % (BYTES / PAGE_BYTES);

        page_check(page);
        if (random & 0x10000)
            page_write(page);
    }
    put_text("checked at random\n");
    end(0);
}
