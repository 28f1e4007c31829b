// Kernels as Python sees them: a callable for each variant, which takes addresses and numbers.
//
// lilliput/core/kernel.py checks what it passes (type, contiguity, device) against the signature, and picks the variant.
#include <cstring>

#include "compiled.h"
#include "registry.h"

namespace nb = nanobind;
using lilliput::Compiled;

namespace {

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
