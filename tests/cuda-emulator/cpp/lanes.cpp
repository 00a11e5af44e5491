#include "lanes.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "context.h"
#include "emulator.h"

__thread uint3 threadIdx;
__thread uint3 blockIdx;
__thread uint3 blockDim;
__thread uint3 gridDim;

namespace lanes {
namespace {

constexpr unsigned MOST_THREADS = 1024;
constexpr unsigned WARP = 32;
constexpr size_t STACK = 64 << 10;
// What a block of the smallest GPU supported can have (sm_80 has 163 kB, which the launch plans keep to).
constexpr size_t MOST_SHARED = 163 << 10;
constexpr size_t GUARD = 256;
constexpr unsigned char POISON = 0xff;  // bytes of a NaN in every float format
constexpr uint64_t CANARY = 0x7465632d6c616e65;

enum class Waits { nobody, warp, block, ended };

struct Fiber {
    Context context;
    uint3 index;
    Waits waits;
    // The warp's operation that is waited for.
    unsigned operation;
};

struct Warp {
    unsigned lanes;
    unsigned arrived;
    // Operations done. What the lanes show alternates between two places: whoever shows the next value may come before
    // all have looked at this one.
    unsigned operations;
    const char* name;
    Slot slots[2][WARP];
};

struct Machine {
    Machine() {
        stacks = static_cast<unsigned char*>(mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE,
                                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    ~Machine() {
        if (stacks != MAP_FAILED) {
            munmap(stacks, MOST_THREADS * STACK);
        }
    }

    unsigned char* stacks;
    Context scheduler{};
    Fiber fibers[MOST_THREADS] = {};
    Warp warps[MOST_THREADS / WARP] = {};
    alignas(128) unsigned char shared[MOST_SHARED + GUARD];
    unsigned threads = 0;
    unsigned running = 0;
    // Takes warps and lanes from the last to the first.
    bool backwards = false;
    const Kernel* kernel = nullptr;
    void** parameters = nullptr;
    bool failed = false;
    char message[512] = "";
};

// One for each operating-system thread that launches.
thread_local std::unique_ptr<Machine> owner;
__thread Machine* machine;

void fiber_main() {
    machine->kernel->call(machine->parameters);
    machine->fibers[machine->running].waits = Waits::ended;
    switch_context(&machine->fibers[machine->running].context, &machine->scheduler);
    std::abort();  // an ended thread is never switched to
}

void wait() { switch_context(&machine->fibers[machine->running].context, &machine->scheduler); }

uint64_t* canary(unsigned thread) { return reinterpret_cast<uint64_t*>(machine->stacks + thread * STACK); }

void say(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(machine->message, sizeof machine->message, format, arguments);
    va_end(arguments);
    machine->failed = true;
}

// Runs the lanes of a warp until each waits for the block or has ended; false if none could run.
bool run_warp(unsigned number) {
    Warp& warp = machine->warps[number];
    bool any = false, again = true;
    while (again) {
        again = false;
        for (unsigned turn = 0; turn < warp.lanes; ++turn) {
            const unsigned lane = machine->backwards ? warp.lanes - 1 - turn : turn;
            Fiber& fiber = machine->fibers[number * WARP + lane];
            const bool ready =
                fiber.waits == Waits::nobody || (fiber.waits == Waits::warp && fiber.operation != warp.operations);
            if (!ready) {
                continue;
            }
            fiber.waits = Waits::nobody;
            machine->running = number * WARP + lane;
            threadIdx = fiber.index;
            switch_context(&machine->scheduler, &fiber.context);
            if (machine->failed) {
                return false;
            }
            any = again = true;
        }
    }
    return any;
}

void start_block() {
    const unsigned threads = machine->threads;
    unsigned thread = 0;
    for (unsigned z = 0; z < blockDim.z; ++z) {
        for (unsigned y = 0; y < blockDim.y; ++y) {
            for (unsigned x = 0; x < blockDim.x; ++x, ++thread) {
                Fiber& fiber = machine->fibers[thread];
                fiber.index = {x, y, z};
                fiber.waits = Waits::nobody;
                prepare_context(&fiber.context, machine->stacks + thread * STACK, STACK, fiber_main);
                *canary(thread) = CANARY;
            }
        }
    }
    for (unsigned number = 0; number * WARP < threads; ++number) {
        Warp& warp = machine->warps[number];
        warp.lanes = threads - number * WARP < WARP ? threads - number * WARP : WARP;
        warp.arrived = 0;
        warp.operations = 0;
    }
}

// Says who waits for what, where no thread can go on.
void describe_deadlock() {
    unsigned ended = 0, at_barrier = 0, in_warp = 0, first = 0;
    for (unsigned thread = 0; thread < machine->threads; ++thread) {
        const Waits waits = machine->fibers[thread].waits;
        ended += waits == Waits::ended;
        at_barrier += waits == Waits::block;
        if (waits == Waits::warp && in_warp++ == 0) {
            first = thread;
        }
    }
    const char* name = in_warp > 0 ? machine->warps[first / WARP].name : "no warp operation";
    say("of %u threads %u have ended, %u wait at __syncthreads and %u for their warp in %s: not all reach it",
        machine->threads, ended, at_barrier, in_warp, name);
}

bool run_block() {
    start_block();
    for (;;) {
        const unsigned warps = (machine->threads + WARP - 1) / WARP;
        for (unsigned turn = 0; turn < warps; ++turn) {
            run_warp(machine->backwards ? warps - 1 - turn : turn);
            if (machine->failed) {
                return false;
            }
        }
        unsigned ended = 0, at_barrier = 0;
        for (unsigned thread = 0; thread < machine->threads; ++thread) {
            ended += machine->fibers[thread].waits == Waits::ended;
            at_barrier += machine->fibers[thread].waits == Waits::block;
        }
        if (ended == machine->threads) {
            break;
        }
        if (at_barrier != machine->threads) {
            describe_deadlock();
            return false;
        }
        for (unsigned thread = 0; thread < machine->threads; ++thread) {
            machine->fibers[thread].waits = Waits::nobody;
        }
    }
    for (unsigned thread = 0; thread < machine->threads; ++thread) {
        if (*canary(thread) != CANARY) {
            say("a thread needs more than its stack of %zu bytes", STACK);
            return false;
        }
    }
    return true;
}

const Kernel* find(const char* name) {
    for (const Kernel* kernel = KERNELS; kernel->name != nullptr; ++kernel) {
        if (std::strcmp(kernel->name, name) == 0) {
            return kernel;
        }
    }
    return nullptr;
}

void run(const char* name, uint3 grid, uint3 block, unsigned shared) {
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (machine->stacks == MAP_FAILED) {
        return say("there is no memory for the threads' stacks");
    }
    machine->kernel = find(name);
    if (machine->kernel == nullptr) {
        return say("there is no kernel of this name");
    }
    if (threads == 0 || threads > machine->kernel->threads || threads > MOST_THREADS) {
        return say("a block of %u x %u x %u threads: it may have 1 to %u", block.x, block.y, block.z,
                   machine->kernel->threads);
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 0xffffu || grid.z > 0xffffu) {
        return say("a grid of %u x %u x %u blocks is outside CUDA's limits", grid.x, grid.y, grid.z);
    }
    if (shared > MOST_SHARED) {
        return say("%u bytes of shared memory, a block can have %zu", shared, MOST_SHARED);
    }
    machine->threads = unsigned(threads);
    blockDim = block;
    gridDim = grid;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                blockIdx = {x, y, z};
                std::memset(machine->shared, POISON, shared + GUARD);
                if (!run_block()) {
                    return;
                }
                for (size_t at = shared; at < shared + GUARD; ++at) {
                    if (machine->shared[at] != POISON) {
                        return say("shared memory was written behind its %u bytes", shared);
                    }
                }
            }
        }
    }
}

void start_machine() {
    if (!owner) {
        owner = std::make_unique<Machine>();
        machine = owner.get();
    }
}

}  // namespace

unsigned lane() { return machine->running % WARP; }

Slot* exchange(const char* operation, const void* value, unsigned bytes, void (*complete)(Slot*)) {
    Warp& warp = machine->warps[machine->running / WARP];
    Slot* slots = warp.slots[warp.operations % 2];
    if (bytes > 0) {
        std::memcpy(slots[lane()].bytes, value, bytes);
    }
    if (warp.arrived == 0) {
        warp.name = operation;
    } else if (warp.name != operation && std::strcmp(warp.name, operation) != 0) {
        fail("one lane of a warp is in %s, another in %s", operation, warp.name);
    }
    if (++warp.arrived == warp.lanes) {
        if (complete != nullptr) {
            complete(slots);
        }
        warp.arrived = 0;
        ++warp.operations;
    } else {
        Fiber& fiber = machine->fibers[machine->running];
        fiber.waits = Waits::warp;
        fiber.operation = warp.operations;
        wait();
    }
    return slots;
}

void barrier() {
    machine->fibers[machine->running].waits = Waits::block;
    wait();
}

void* dynamic_shared() { return machine->shared; }

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(machine->message, sizeof machine->message, format, arguments);
    va_end(arguments);
    machine->failed = true;
    wait();
    std::abort();  // after a failure no thread is switched to
}

}  // namespace lanes

extern "C" int emulator_launch(const char* name, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared_bytes, void** parameters) {
    using namespace lanes;
    start_machine();
    machine->failed = false;
    machine->message[0] = 0;
    machine->parameters = parameters;
    run(name, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes);
    if (!machine->failed) {
        return 0;
    }
    char reason[sizeof machine->message];
    std::memcpy(reason, machine->message, sizeof reason);
    snprintf(machine->message, sizeof machine->message, "%.60s, block (%u, %u, %u), thread (%u, %u, %u): %.380s", name,
             blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, reason);
    return 1;
}

extern "C" void emulator_run_backwards(int backwards) {
    lanes::start_machine();
    lanes::machine->backwards = backwards != 0;
}

extern "C" const char* emulator_error() { return lanes::machine == nullptr ? "" : lanes::machine->message; }

extern "C" const unsigned* emulator_parameter_sizes(const char* name) {
    const lanes::Kernel* kernel = lanes::find(name);
    return kernel == nullptr ? nullptr : kernel->sizes();
}
