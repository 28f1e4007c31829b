// The Python module: runs every binder that the other sources registered.
#include "registry.h"

NB_MODULE(_cpp, m) {
  for (const lilliput::Register* r = lilliput::Register::head(); r != nullptr; r = r->next) r->binder(m);
}
