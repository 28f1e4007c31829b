// The list of kernels, and the questions to the CPU.
#include "table.h"

#include <cstring>

namespace lilliput {
namespace {

const Kernel*& head() {
  static const Kernel* first = nullptr;
  return first;
}

}  // namespace

const Kernel* first_kernel() { return head(); }

bool add_kernel(Kernel* kernel) {
  kernel->next = head();
  head() = kernel;
  return true;
}

bool has_isa(const char* isa) {
  if (std::strcmp(isa, "generic") == 0) return true;
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  if (std::strcmp(isa, "avx2") == 0) return avx2;
  if (std::strcmp(isa, "avx512") == 0) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("avx512vpopcntdq");
  }
#endif
  return false;
}

bool has_bf16() {
#if defined(__x86_64__) || defined(__i386__)
  static const bool found = has_isa("avx512") && __builtin_cpu_supports("avx512bf16");
  return found;
#else
  return false;
#endif
}

}  // namespace lilliput
