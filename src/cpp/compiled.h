// A variant of a kernel as Python holds it, and how what Python passes becomes its arguments.
#pragma once

#include <nanobind/nanobind.h>

#include <cstring>
#include <stdexcept>

#include "table.h"
#include "threads.h"

namespace lilliput {

constexpr size_t kMost = 48;  // arguments of a kernel

struct Compiled {
  const Kernel* kernel;

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
    if (PyErr_Occurred()) throw nanobind::python_error();
    return bits;
  }

  void operator()(int threads, nanobind::args arguments) const {
    const size_t count = std::strlen(kernel->signature) / 2;
    if (arguments.size() != count || count > kMost) throw std::invalid_argument("a kernel got too few or many arguments");
    uint64_t slots[kMost];
    for (size_t i = 0; i < count; ++i) {
      slots[i] = slot(kernel->signature[2 * i], kernel->signature[2 * i + 1], nanobind::object(arguments[i]).ptr());
    }
    nanobind::gil_scoped_release release;
    set_threads(threads);
    kernel->run(slots);
  }
};

}  // namespace lilliput
