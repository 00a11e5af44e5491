// Switching between fibers of one operating-system thread.
#pragma once

#include <cstddef>

namespace lanes {

// Where a fiber that does not run goes on.
struct Context {
#if defined(__x86_64__) || defined(__aarch64__)
    void* stack_pointer;
#else
    void* machine;
#endif
};

// Goes on at `next`; what ran goes on from here when someone switches to `current`.
void switch_context(Context* current, Context* next);

// Makes `context` begin with `entry`, which never returns, on the stack of `bytes` bytes.
void prepare_context(Context* context, void* stack, size_t bytes, void (*entry)());

}  // namespace lanes
