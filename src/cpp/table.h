// The kernels that were compiled, and which of them this CPU can run; see kernels/kernel.h for how they get here.
#pragma once

#include <cstdint>

namespace lilliput {

// A compiled variant of a kernel. `signature` has two characters an argument: * points to what is read, & to what is
// written, . is a number; then the type as in Python's `struct` (B b H h I i Q q f d).
struct Kernel {
  const char* name;
  const char* isa;
  const char* signature;
  void (*run)(const uint64_t* arguments);
  const Kernel* next;
};

const Kernel* first_kernel();
bool add_kernel(Kernel* kernel);
bool has_isa(const char* isa);  // whether this CPU, and its system, can run it
bool has_bf16();              // VDPBF16PS, which is not part of avx512: mark its functions target("avx512bf16")

}  // namespace lilliput
