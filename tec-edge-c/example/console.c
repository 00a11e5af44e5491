/* Semihosting: the operation in r0, its argument in r1, and a breakpoint that the debugger, or QEMU, answers. */
#include "console.h"

enum { WRITE0 = 0x04, EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };

static void host(uint32_t operation, const void *argument) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

void print(const char *text) { host(WRITE0, text); }

void print_decimal(int32_t number) {
    char digits[12], *at = digits + sizeof digits;
    uint32_t rest = number < 0 ? 0u - (uint32_t)number : (uint32_t)number;
    *--at = 0;
    do {
        *--at = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (number < 0) *--at = '-';
    print(at);
}

void print_hexadecimal(uint64_t number) {
    char digits[17];
    for (int i = 0; i < 16; i++) digits[i] = "0123456789abcdef"[number >> (60 - 4 * i) & 15];
    digits[16] = 0;
    print(digits);
}

_Noreturn void end(int status) {
    const uint32_t argument[2] = {APPLICATION_EXIT, (uint32_t)status};
    host(EXIT_EXTENDED, argument);
    for (;;) {
    }
}
