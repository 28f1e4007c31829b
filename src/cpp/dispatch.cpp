// Kernels as Python sees them: a callable for each variant, which takes addresses and numbers.
//
// lilliput/core/kernel.py checks what it passes (type, contiguity, device) against the signature, and picks the variant.
#include <cstring>
#include <stdexcept>

#include "registry.h"
#include "table.h"
#include "threads.h"

namespace nb = nanobind;

namespace {

constexpr size_t kMost = 48;  // arguments of a kernel

struct Compiled {
  const lilliput::Kernel* kernel;

  static uint64_t slot(char mark, char type, PyObject* value) {
    uint64_t bits = 0;
    if (mark != '.') {
      if (value == Py_None) return 0;
      bits = PyLong_AsUnsignedLongLong(value);
    } else if (type == 'f' || type == 'd') {
      const double number = PyFloat_AsDouble(value);
      std::memcpy(&bits, &number, sizeof bits);
    } else {
      bits = static_cast<uint64_t>(PyLong_AsLongLong(value));
    }
    if (PyErr_Occurred()) throw nb::python_error();
    return bits;
  }

  void operator()(int threads, nb::args arguments) const {
    const size_t count = std::strlen(kernel->signature) / 2;
    if (arguments.size() != count || count > kMost) throw std::invalid_argument("a kernel got too few or many arguments");
    uint64_t slots[kMost];
    for (size_t i = 0; i < count; ++i) {
      slots[i] = slot(kernel->signature[2 * i], kernel->signature[2 * i + 1], nb::object(arguments[i]).ptr());
    }
    nb::gil_scoped_release release;
    lilliput::set_threads(threads);
    kernel->run(slots);
  }
};

nb::object find(const char* name, const char* isa) {
  for (const lilliput::Kernel* k = lilliput::first_kernel(); k != nullptr; k = k->next) {
    if (std::strcmp(k->name, name) == 0 && std::strcmp(k->isa, isa) == 0 && lilliput::has_isa(isa)) {
      return nb::cast(Compiled{k});
    }
  }
  return nb::none();
}

nb::list kernels() {
  nb::list found;
  for (const lilliput::Kernel* k = lilliput::first_kernel(); k != nullptr; k = k->next) {
    found.append(nb::make_tuple(k->name, k->isa, k->signature));
  }
  return found;
}

const lilliput::Register bind([](nb::module_& m) {
  nb::class_<Compiled>(m, "Kernel")
      .def("__call__", &Compiled::operator())
      .def_prop_ro("signature", [](const Compiled& c) { return c.kernel->signature; })
      .def_prop_ro("isa", [](const Compiled& c) { return c.kernel->isa; });
  nb::set_leak_warnings(false);  // Python keeps the kernels it found until the process ends
  m.def("kernel", &find);
  m.def("kernels", &kernels);
  m.def("has_isa", &lilliput::has_isa);
});

}  // namespace
