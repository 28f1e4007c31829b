"""The smallest coding of an integer array: every file of this folder is a candidate."""

import functools
import importlib
import pkgutil
from typing import ClassVar, Protocol, cast

import numpy as np

from lilliput.coding import __path__ as folder
from lilliput.coding.parts import alphabet, integers
from lilliput.core.errors import FileError

WORTHWHILE = 4
"""A coding that only estimates its cost is tried where the estimate is below this many times the smallest size."""


class Coding(Protocol):
    """What each file of this folder offers: one frozen dataclass named after the file.

    `cost_is_exact` says whether `cost` is the size that `encode` writes or an estimate of it.
    """

    cost_is_exact: ClassVar[bool]

    def encode(self, array: np.ndarray) -> bytes | None:
        """Bytes that hold everything but shape and dtype, or None where the array can't be taken."""

    def cost(self, array: np.ndarray) -> int:
        """Size of what `encode` would write, in bytes; `1 << 62` where it can't."""

    def decode(self, data: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The array, or FileError."""


@functools.cache
def codings() -> dict[str, Coding]:
    """One instance of every coding by its name, in alphabetical order.

    >>> "rans" in codings()
    True
    """
    names = sorted(m.name for m in pkgutil.iter_modules(folder) if not m.ispkg and m.name != "choose")
    return {name: _load(name) for name in names}


def _load(name: str) -> Coding:
    module = importlib.import_module(f"lilliput.coding.{name}")
    return cast(Coding, vars(module)[name.title().replace("_", "")]())


def encode(array: np.ndarray) -> tuple[str, bytes]:
    """Name and bytes of the smallest coding; of equal ones the first by name.

    Raises:
        TypeError: not an array of integers.

    >>> name, data = encode(np.zeros(1000, np.int8)); name, len(data)
    ('bitpack', 2)
    """
    costs = {name: coding.cost(array) for name, coding in codings().items()}
    exact = {name: cost for name, cost in costs.items() if codings()[name].cost_is_exact}
    best = min(exact, key=lambda name: exact[name])
    found = []
    for name in costs.keys() - exact.keys():
        data = codings()[name].encode(array) if costs[name] < WORTHWHILE * exact[best] else None
        if data is not None:
            found.append((len(data), name, data))
    if not found or (exact[best], best) < min(found)[:2]:
        return best, codings()[best].encode(array) or b""
    _, name, data = min(found)
    return name, data


def decode(name: str, data: bytes | memoryview, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    r"""The array that `encode` coded under this name.

    Raises:
        FileError: no such coding, or bytes that it refuses.

    >>> decode("bitpack", b"\x06\x00", (2,), np.dtype(np.uint8)).tolist()
    [3, 3]
    """
    if name not in codings():
        raise FileError(f"no coding is called {name!r}: known are {', '.join(codings())}")
    return codings()[name].decode(data, shape, np.dtype(dtype))


def size(array: np.ndarray) -> int:
    """Bytes that `encode` writes."""
    return len(encode(array)[1])


def entropy_bits(array: np.ndarray) -> float:
    """Order-0 entropy of the whole array in bits: sum over values of n log2(N / n).

    >>> entropy_bits(np.array([0, 0, 1, 2]))
    6.0
    """
    flat = integers.as_integers(array).reshape(-1)
    return alphabet.entropy(alphabet.of_array(flat).counts) if flat.size else 0.0
