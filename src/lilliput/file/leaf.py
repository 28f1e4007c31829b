"""A leaf: one tensor of a file and the bytes that stand for it, on the way out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lilliput.core.errors import FileError
from lilliput.core.packed import Packed, leaves
from lilliput.file import layout

View = bytes | memoryview


@dataclass(frozen=True)
class Leaf:
    """One tensor and how it is stored.

    Attributes:
        owner: name of the parameter, buffer or constant that it belongs to.
        part: path of the part within a packed weight, such as `"values.codes"`; empty for a plain tensor.
        code: dtype, such as `"F32"`.
        shape: of the tensor.
        how: `"="` (all elements equal), `"copy"` (of an earlier leaf), `"raw"` (a float, as it is in memory), the name
            of the coding of an integer tensor, or, when read, `"named"` (a float that is a tensor of its own).
        argument: the element in hexadecimal for `"="`; the earlier leaf's number for `"copy"`; else the length.
        data: the bytes, empty for `"="` and `"copy"`.
    """

    owner: str
    part: str
    code: str
    shape: tuple[int, ...]
    how: str
    argument: str | int
    data: View = b""

    @property
    def name(self) -> str:
        """Under which a float is found by other readers of safetensors: `fc.bias`, `conv.weight/scale`."""
        return f"{self.owner}/{self.part}" if self.part else self.owner

    @property
    def decoded(self) -> int:
        """Bytes of the tensor in memory."""
        return math.prod(self.shape) * layout.DTYPES[self.code].itemsize

    def entry(self, named: bool) -> list[object]:
        """Returns what stands for the leaf in the manifest.

        Args:
            named: floats are tensors of their own in the file's header.
        """
        if self.how == "raw":
            return [self.code, list(self.shape)] if named else [self.code, list(self.shape), "raw"]
        return [self.code, list(self.shape), self.how, self.argument]


@dataclass
class Leaves:
    """Encodes tensors one after another; what has been seen before is stored once.

    Attributes:
        found: the leaves in the order of the manifest.
    """

    found: list[Leaf] = field(default_factory=list)
    _seen: dict[tuple[str, tuple[int, ...], bytes], int] = field(default_factory=dict)

    def add(self, owner: str, value: Packed | Tensor) -> None:
        """Encodes a plain tensor, or all leaves of a packed weight.

        Raises:
            FileError: a dtype that no file can hold, or a NaN or infinity inside a packed weight.
        """
        for part, tensor in leaves(value):
            leaf = self._encoded(owner, part, tensor.detach())
            self.found.append(leaf)
        if len(self.found) > layout.MAX_TENSORS:
            raise FileError(f"more than {layout.MAX_TENSORS} tensors: a file can't hold so many")

    def _encoded(self, owner: str, part: str, tensor: Tensor) -> Leaf:
        where = f"{owner}/{part}" if part else owner
        code = layout.code_of(tensor.dtype, where)
        if part and tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise FileError(f"{where}: holds NaN or infinity; a packed weight must be finite")
        shape = tuple(tensor.shape)
        array = contents(tensor)
        if is_constant(array):
            return Leaf(owner, part, code, shape, "=", array[:1].tobytes().hex())
        key = code, shape, hashlib.sha256(array.data).digest()
        if key in self._seen:
            return Leaf(owner, part, code, shape, "copy", self._seen[key])
        self._seen[key] = len(self.found)
        if tensor.dtype.is_floating_point:
            return Leaf(owner, part, code, shape, "raw", array.nbytes, array.data.cast("B"))
        from lilliput.coding import choose

        dtype = np.dtype(bool) if tensor.dtype == torch.bool else array.dtype
        coding, data = choose.encode(array.view(dtype).reshape(shape))
        return Leaf(owner, part, code, shape, coding, len(data), data)

    def __iter__(self) -> Iterator[Leaf]:
        return iter(self.found)


def contents(tensor: Tensor) -> np.ndarray:
    """Returns the elements in row-major order as integers of the same width, without copying where that can be.

    The integers are little-endian and hold the tensor's bits whatever its dtype, so that comparing them compares bits.

    Args:
        tensor: any shape, any device.

    Returns:
        One axis; dtype int8, uint8, int16, int32 or int64.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.dtype.is_floating_point:
        flat = flat.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])
    elif flat.dtype == torch.bool:
        flat = flat.view(torch.uint8)
    array: np.ndarray = flat.numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def is_constant(array: np.ndarray) -> bool:
    """Whether all elements are the same; true of none and of one."""
    return len(array) < 2 or bool((array[:64] == array[0]).all() and (array == array[0]).all())
