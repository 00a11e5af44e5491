// What other languages call.
#pragma once

extern "C" {

// Runs a kernel to its end, on the calling thread. `parameters` are pointers to the kernel's arguments, as CUDA's launch
// functions want them. 0, or 1 where it failed; emulator_error() says why.
int emulator_launch(const char* name, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                    unsigned block_y, unsigned block_z, unsigned shared_bytes, void** parameters);

// Whether this thread's launches take the threads of a block from the last to the first: where a barrier is missing, the results
// differ.
void emulator_run_backwards(int backwards);

// What went wrong in this thread's last launch; valid until the next.
const char* emulator_error();

// The sizes in bytes of a kernel's parameters, ending with a zero; null where there is no such kernel.
const unsigned* emulator_parameter_sizes(const char* name);
}
