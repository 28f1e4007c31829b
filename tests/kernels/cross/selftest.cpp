// Kernels of another machine against plain loops: convolutions of signs (bits.h), rows of floats (floats.h). Built and run
// by build.py; exits with 0 if all agree.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "table.h"
#include "threads.h"

namespace {

uint32_t state = 1;

float drawn() {  // -1 to 1
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(static_cast<int32_t>(state)) / 2147483648.0f;
}

std::vector<float> floats(int64_t count) {
  std::vector<float> found(static_cast<size_t>(count));
  for (float& x : found) x = drawn();
  return found;
}

uint64_t slot(const void* p) { return reinterpret_cast<uintptr_t>(p); }
uint64_t slot(int64_t n) { return static_cast<uint64_t>(n); }
uint64_t slot(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <typename... A>
bool run(const char* name, A... arguments) {
  const uint64_t slots[] = {slot(arguments)...};
  for (const lilliput::Kernel* k = lilliput::first_kernel(); k != nullptr; k = k->next) {
    if (std::strcmp(k->name, name) != 0) continue;
    k->run(slots);
    return true;
  }
  std::printf("there is no kernel %s\n", name);
  return false;
}

const void* none() { return nullptr; }

// Signs of a map of `channels` by 3 x 3 signs, a border of 1 that adds nothing.
bool signs_convolve(int64_t channels, int64_t outputs, int64_t size, int64_t stride) {
  const int64_t words = 2 * ((channels + 63) / 64), blocks = (outputs + 63) / 64, out = (size - 1) / stride + 1;
  const std::vector<float> x = floats(channels * size * size), w = floats(outputs * channels * 9);
  std::vector<int32_t> weight(static_cast<size_t>(blocks * 9 * words * 64)), outside, base, levels = {-2, 1};
  std::vector<float> scale(static_cast<size_t>(outputs), 1.0f), y(static_cast<size_t>(out * out * outputs));
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t t = 0; t < 9; ++t) {
        if (w[static_cast<size_t>((o * channels + c) * 9 + t)] < 0.0f) continue;
        int32_t& word = weight[static_cast<size_t>(((o / 64 * 9 + t) * words + c / 32) * 64 + o % 64)];
        word = static_cast<int32_t>(static_cast<uint32_t>(word) | 1u << (c % 32));
      }
    }
  }
  outside.assign(static_cast<size_t>(9 * outputs), static_cast<int32_t>(-channels));
  base.assign(static_cast<size_t>(outputs), static_cast<int32_t>(9 * channels));
  const std::vector<int64_t> sizes = {1, 1, 0, 0, 1, size, size, words, outputs, out, out,
                                      3, 3, stride, stride, 1, 1, 1, 1, channels, 1, 0};
  if (!run("bit_conv", static_cast<const void*>(sizes.data()), none(), static_cast<const void*>(x.data()),
           static_cast<const void*>(weight.data()), static_cast<const void*>(outside.data()),
           static_cast<const void*>(base.data()), static_cast<const void*>(levels.data()),
           static_cast<const void*>(scale.data()), none(), none(), none(), none(), none(),
           static_cast<const void*>(y.data()), none())) {
    return false;
  }
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t place = 0; place < out * out; ++place) {
      int64_t sum = 0;
      for (int64_t t = 0; t < 9; ++t) {
        const int64_t i = place / out * stride + t / 3 - 1, j = place % out * stride + t % 3 - 1;
        if (i < 0 || j < 0 || i >= size || j >= size) continue;
        for (int64_t c = 0; c < channels; ++c) {
          const bool a = x[static_cast<size_t>((c * size + i) * size + j)] >= 0.0f;
          sum += a == (w[static_cast<size_t>((o * channels + c) * 9 + t)] >= 0.0f) ? 1 : -1;
        }
      }
      if (y[static_cast<size_t>(place * outputs + o)] == static_cast<float>(sum)) continue;
      std::printf("bit_conv: %g at output %d, not %d\n", static_cast<double>(y[static_cast<size_t>(place * outputs + o)]),
                  static_cast<int>(o), static_cast<int>(sum));
      return false;
    }
  }
  return true;
}

bool rows_multiply(int64_t rows, int64_t inputs, int64_t outputs) {
  const std::vector<float> x = floats(rows * inputs), w = floats(outputs * inputs), bias = floats(outputs);
  std::vector<float> y(static_cast<size_t>(rows * outputs));
  if (!run("dense_linear", static_cast<const void*>(x.data()), static_cast<const void*>(w.data()),
           static_cast<const void*>(bias.data()), static_cast<const void*>(y.data()), rows, inputs, outputs, -1e30, 1e30)) {
    return false;
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < outputs; ++o) {
      double sum = bias[static_cast<size_t>(o)];
      for (int64_t i = 0; i < inputs; ++i) {
        sum += static_cast<double>(x[static_cast<size_t>(r * inputs + i)]) * w[static_cast<size_t>(o * inputs + i)];
      }
      if (std::fabs(y[static_cast<size_t>(r * outputs + o)] - sum) <= 1e-5 * static_cast<double>(inputs)) continue;
      std::printf("dense_linear: %g, not %g\n", static_cast<double>(y[static_cast<size_t>(r * outputs + o)]), sum);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  lilliput::set_threads(2);
  int count = 0;
  for (const lilliput::Kernel* k = lilliput::first_kernel(); k != nullptr; k = k->next) ++count;
  bool right = true;
  for (int64_t channels : {1, 65, 128}) {
    for (int64_t stride : {1, 2}) right = right && signs_convolve(channels, 67, 7, stride);
  }
  right = right && rows_multiply(3, 37, 21);
  std::printf("%d kernels, %s\n", count, right ? "right" : "wrong");
  return right ? 0 : 1;
}
