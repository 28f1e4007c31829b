// What kernels know of threads; see threads.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lilliput {

// For the kernels that this thread calls from now on.
void set_threads(int count);

// Calls body(data, begin, end) for pieces of [0, n), at least `grain` long, on so many threads.
void parallel_run(int64_t n, int64_t grain, void (*body)(void*, int64_t, int64_t), void* data);

// Memory of this thread, aligned to 64 bytes, kept for the next call; each slot (0..7) is a block of its own.
void* scratch(int slot, size_t bytes);

}  // namespace lilliput
