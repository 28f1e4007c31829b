"""The compiled extension, if there is one, and the single warning when there is none."""

import importlib
import os
import warnings
from types import ModuleType

from lilliput.core.errors import LilliputWarning

LARGE = 1 << 18
"""Number of elements from which the compiled code is so much faster that its absence is worth a word."""

_state: dict[str, ModuleType | None] = {}
_warned: list[str] = []


def extension(elements: int = 0, work: str = "coding weights") -> ModuleType | None:
    """The module `lilliput._cpp`, or None where it wasn't built or `LILLIPUT_PURE=1` is set.

    Args:
        elements: size of the job; from `LARGE` on, a missing extension is reported, once a process.
        work: what the job is, for that report.

    Returns:
        The extension module, or None: then the caller uses its NumPy code, which gives the same result.
    """
    if os.environ.get("LILLIPUT_PURE", "") not in ("", "0"):
        return None
    if "module" not in _state:
        try:
            _state["module"] = importlib.import_module("lilliput._cpp")
        except ImportError:
            _state["module"] = None
    module = _state["module"]
    if module is None and elements >= LARGE and not _warned:
        _warned.append(work)
        warnings.warn(
            f"{work} runs in NumPy because Lilliput's compiled extension is missing: several times slower, same "
            "result; reinstall with a C++17 compiler to get it (LILLIPUT_PURE=1 silences this)",
            LilliputWarning,
            stacklevel=3,
        )
    return module
