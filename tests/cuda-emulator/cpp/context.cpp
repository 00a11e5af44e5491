#include "context.h"

#include <cstdint>

#if defined(__x86_64__)

// The registers that a call keeps, on the stack that is left.
asm(R"(
.text
.p2align 4
.globl lanes_switch_stack
.type lanes_switch_stack, @function
lanes_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size lanes_switch_stack, .-lanes_switch_stack
)");

static const size_t SAVED = 6;   // words below the address to return to
static const size_t RETURN = 6;  // where that address lies

#elif defined(__aarch64__)

asm(R"(
.text
.p2align 4
.globl lanes_switch_stack
.type lanes_switch_stack, %function
lanes_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size lanes_switch_stack, .-lanes_switch_stack
)");

static const size_t SAVED = 20;
static const size_t RETURN = 11;  // x30

#endif

#if defined(__x86_64__) || defined(__aarch64__)

extern "C" void lanes_switch_stack(void** current, void* next);

namespace lanes {

void switch_context(Context* current, Context* next) {
    lanes_switch_stack(&current->stack_pointer, next->stack_pointer);
}

void prepare_context(Context* context, void* stack, size_t bytes, void (*entry)()) {
    uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15);
    void** frame = reinterpret_cast<void**>(top) - SAVED;
#if defined(__x86_64__)
    frame -= 2;  // the address of `entry` and that of its caller, which has none
#endif
    for (size_t i = 0; i < SAVED; ++i) {
        frame[i] = nullptr;
    }
    frame[RETURN] = reinterpret_cast<void*>(entry);
#if defined(__x86_64__)
    frame[RETURN + 1] = nullptr;
#endif
    context->stack_pointer = frame;
}

}  // namespace lanes

#else

#include <ucontext.h>

namespace lanes {

static ucontext_t* machine(Context* context) {
    if (context->machine == nullptr) {
        context->machine = new ucontext_t();
    }
    return static_cast<ucontext_t*>(context->machine);
}

void switch_context(Context* current, Context* next) { swapcontext(machine(current), machine(next)); }

void prepare_context(Context* context, void* stack, size_t bytes, void (*entry)()) {
    ucontext_t* place = machine(context);
    getcontext(place);
    place->uc_stack.ss_sp = stack;
    place->uc_stack.ss_size = bytes;
    place->uc_link = nullptr;
    makecontext(place, entry, 0);
}

}  // namespace lanes

#endif
