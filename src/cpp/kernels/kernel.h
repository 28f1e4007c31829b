// What a kernel includes: how it registers itself, runs on several threads, and gets memory to work in.
//
// Every file of this folder is compiled once for each instruction set, with LILLIPUT_ISA = generic, avx2 or avx512 (with
// VNNI, VPOPCNTDQ and VBMI). Whatever a file defines stands in `namespace lilliput::LILLIPUT_ISA` or in an anonymous one,
// so that the variants don't meet: a function with one name in two variants would be one function, and might be that of
// the wrong CPU. For the same reason kernels use no containers and no algorithms of the standard library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../table.h"
#include "../threads.h"

#ifndef LILLIPUT_ISA
#error "kernels are compiled once for each instruction set: -DLILLIPUT_ISA=generic"
#endif
#define LILLIPUT_TEXT_OF(x) #x
#define LILLIPUT_TEXT(x) LILLIPUT_TEXT_OF(x)
#define LILLIPUT_CAT_OF(a, b) a##b
#define LILLIPUT_CAT(a, b) LILLIPUT_CAT_OF(a, b)

#if defined(__GNUC__) || defined(__clang__)
#define LILLIPUT_INLINE inline __attribute__((always_inline))
#else
#define LILLIPUT_INLINE inline
#endif

namespace lilliput {
namespace LILLIPUT_ISA {

template <typename T>
constexpr char mark_of() {
  if constexpr (!std::is_pointer_v<T>) return '.';
  else return std::is_const_v<std::remove_pointer_t<T>> ? '*' : '&';
}

template <typename T>
constexpr char type_of() {
  using U = std::remove_const_t<std::remove_pointer_t<T>>;
  if constexpr (std::is_floating_point_v<U>) return sizeof(U) == 4 ? 'f' : 'd';
  else {
    constexpr char with_sign[] = " bh i   q", without[] = " BH I   Q";
    return (std::is_signed_v<U> ? with_sign : without)[sizeof(U)];
  }
}

template <auto F>
struct Entry;

template <typename... A, void (*F)(A...)>
struct Entry<F> {
  struct Text {
    char text[2 * sizeof...(A) + 1];
  };

  static constexpr Text signature() {
    Text s{};
    size_t i = 0;
    ((s.text[i++] = mark_of<A>(), s.text[i++] = type_of<A>()), ...);
    return s;
  }

  template <typename T>
  static T value(uint64_t slot) {
    if constexpr (std::is_pointer_v<T>) return reinterpret_cast<T>(static_cast<uintptr_t>(slot));
    else if constexpr (std::is_floating_point_v<T>) {
      double d;
      std::memcpy(&d, &slot, sizeof d);
      return static_cast<T>(d);
    } else return static_cast<T>(slot);
  }

  template <size_t... I>
  static void spread(const uint64_t* slots, std::index_sequence<I...>) {
    F(value<A>(slots[I])...);
  }

  static void run(const uint64_t* slots) { spread(slots, std::index_sequence_for<A...>{}); }

  static constexpr Text text = signature();
};

// body(begin, end) over pieces of [0, n).
template <typename Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  parallel_run(
      n, grain, [](void* data, int64_t begin, int64_t end) { (*static_cast<const Body*>(data))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

template <typename T>
T* scratch_of(int slot, int64_t count) {
  return static_cast<T*>(scratch(slot, sizeof(T) * static_cast<size_t>(count)));
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

// Makes `function`, of the namespace of the instruction set, callable from Python under its own name.
#define LILLIPUT_KERNEL(function)                                                                                     \
  namespace {                                                                                                         \
  using LILLIPUT_CAT(entry_of_, function) = ::lilliput::LILLIPUT_ISA::Entry<&::lilliput::LILLIPUT_ISA::function>;     \
  ::lilliput::Kernel LILLIPUT_CAT(kernel_, function){#function, LILLIPUT_TEXT(LILLIPUT_ISA),                          \
                                                     LILLIPUT_CAT(entry_of_, function)::text.text,                    \
                                                     &LILLIPUT_CAT(entry_of_, function)::run, nullptr};               \
  [[maybe_unused]] const bool LILLIPUT_CAT(added_, function) = ::lilliput::add_kernel(&LILLIPUT_CAT(kernel_, function)); \
  }
