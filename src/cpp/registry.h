// Every source of this folder adds its own functions to the module `lilliput._cpp`:
//
//     static const lilliput::Register bind([](nanobind::module_& m) { m.def("name", &function, ...); });
//
// so that a new kernel is one new file and no list is edited.
#pragma once

#include <nanobind/nanobind.h>

namespace lilliput {

using Binder = void (*)(nanobind::module_&);

struct Register {
  explicit Register(Binder binder) : binder(binder), next(head()) { head() = this; }

  static const Register*& head() {
    static const Register* first = nullptr;
    return first;
  }

  Binder binder;
  const Register* next;
};

}  // namespace lilliput
