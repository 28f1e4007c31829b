// A program: kernels one after another over one block of memory, called once for a whole network.
//
// A step is a kernel and its arguments: numbers, addresses of weights, which stay where they are (Python keeps them), and
// places in the program's memory, in an input or in an output of the call, each with the bytes that the kernel may touch
// there. Places are checked when a step is added, so that running needs no checks. A call takes a block of memory for
// itself: calls from several threads don't meet.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#include "compiled.h"
#include "registry.h"

namespace nb = nanobind;

namespace {

enum Base : int { kMemory, kInput, kOutput };

// An argument that is known when the program is called: where it begins, from there so many bytes, in which slot.
struct Place {
  int base;
  size_t which, offset, slot;
};

struct Step {
  const lilliput::Kernel* kernel;
  std::vector<uint64_t> slots;
  std::vector<Place> places;
};

struct Block {
  explicit Block(size_t bytes) : data(::operator new(bytes, std::align_val_t{64})) {}
  ~Block() { ::operator delete(data, std::align_val_t{64}); }
  Block(const Block&) = delete;
  void* data;
};

class Program {
 public:
  Program(size_t memory, std::vector<size_t> inputs, std::vector<size_t> outputs)
      : sizes_{{memory}, std::move(inputs), std::move(outputs)} {}

  // Arguments are numbers, None, or for memory (base, which, offset, bytes).
  void add(const lilliput::Compiled& compiled, nb::list arguments) {
    const char* signature = compiled.kernel->signature;
    Step step{compiled.kernel, {}, {}};
    if (arguments.size() != std::strlen(signature) / 2) throw std::invalid_argument("a step has too few or many arguments");
    for (size_t i = 0; i < arguments.size(); ++i) {
      const nb::object value = arguments[i];
      if (nb::isinstance<nb::tuple>(value)) {
        if (signature[2 * i] == '.') throw std::invalid_argument("a step has memory where its kernel takes a number");
        step.places.push_back(place(nb::cast<nb::tuple>(value), i));
        step.slots.push_back(0);
      } else {
        step.slots.push_back(lilliput::Compiled::slot(signature[2 * i], signature[2 * i + 1], value.ptr()));
      }
    }
    steps_.push_back(std::move(step));
  }

  void run(int threads, const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs) {
    const std::vector<uintptr_t>* given[] = {nullptr, &inputs, &outputs};
    check(inputs, outputs);
    nb::gil_scoped_release release;
    lilliput::set_threads(threads);
    std::unique_ptr<Block> block = taken();
    for (const Step& step : steps_) one(step, given, block->data);
    give_back(std::move(block));
  }

 private:
  Place place(const nb::tuple& value, size_t slot) const {
    if (value.size() != 4) throw std::invalid_argument("memory of a step is base, which, offset and bytes");
    const int base = nb::cast<int>(value[0]);
    const size_t which = nb::cast<size_t>(value[1]), offset = nb::cast<size_t>(value[2]), bytes = nb::cast<size_t>(value[3]);
    if (base < kMemory || base > kOutput || which >= sizes_[base].size()) throw std::out_of_range("no such memory");
    const size_t size = sizes_[base][which];
    if (offset > size || bytes > size - offset) throw std::out_of_range("a step reaches beyond its memory");
    return {base, which, offset, slot};
  }

  void check(const std::vector<uintptr_t>& inputs, const std::vector<uintptr_t>& outputs) const {
    if (inputs.size() != sizes_[kInput].size() || outputs.size() != sizes_[kOutput].size()) {
      throw std::invalid_argument("a program got too few or many tensors");
    }
  }

  static void one(const Step& step, const std::vector<uintptr_t>* const* given, void* memory) {
    uint64_t slots[lilliput::kMost];
    std::memcpy(slots, step.slots.data(), step.slots.size() * sizeof(uint64_t));
    for (const Place& p : step.places) {
      const uintptr_t begin = p.base == kMemory ? reinterpret_cast<uintptr_t>(memory) : (*given[p.base])[p.which];
      slots[p.slot] = begin + p.offset;
    }
    step.kernel->run(slots);
  }

  std::unique_ptr<Block> taken() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!blocks_.empty()) {
        std::unique_ptr<Block> found = std::move(blocks_.back());
        blocks_.pop_back();
        return found;
      }
    }
    return std::make_unique<Block>(sizes_[kMemory][0] + 64);
  }

  void give_back(std::unique_ptr<Block> block) {
    std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back(std::move(block));
  }

  std::vector<size_t> sizes_[3];
  std::vector<Step> steps_;
  std::mutex mutex_;  // guards blocks_
  std::vector<std::unique_ptr<Block>> blocks_;
};

const lilliput::Register bind([](nb::module_& m) {
  nb::class_<Program>(m, "Program")
      .def(nb::init<size_t, std::vector<size_t>, std::vector<size_t>>())
      .def("add", &Program::add)
      .def("run", &Program::run);
});

}  // namespace
