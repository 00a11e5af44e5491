/* From reset to main, for a Cortex-M4 with its floating-point unit. */
#include <stdint.h>

#include "console.h"

int main(void);

/* The linker script's. */
extern uint32_t stack_top[], data_start[], data_end[], data_in_flash[], bss_start[], bss_end[];

_Noreturn void reset(void) {
    /* Full access to the coprocessors 10 and 11. */
    volatile uint32_t *const access = (uint32_t *)0xE000ED88;
    *access |= 0xFu << 20;
    __asm__ volatile("dsb\n isb" ::: "memory");
    for (uint32_t *to = data_start, *from = data_in_flash; to < data_end;) *to++ = *from++;
    for (uint32_t *to = bss_start; to < bss_end;) *to++ = 0;
    end(main());
}

static _Noreturn void fault(void) {
    print("fault\n");
    end(101);
}

/* The stack, then the processor's own exceptions; the example has no interrupts. */
typedef union {
    uint32_t *stack;
    void (*handler)(void);
} vector;

__attribute__((section(".vectors"), used)) static const vector vectors[16] = {
    {.stack = stack_top}, {.handler = reset}, {.handler = fault}, {.handler = fault}, {.handler = fault},
    {.handler = fault},   {.handler = fault}, {.handler = 0},     {.handler = 0},     {.handler = 0},
    {.handler = 0},       {.handler = fault}, {.handler = fault}, {.handler = 0},     {.handler = fault},
    {.handler = fault},
};
