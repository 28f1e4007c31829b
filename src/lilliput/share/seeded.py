"""Fixed tensors of -1, 0 and 1 that a seed makes again, as LBCNN's anchors: in a file they cost the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed, cut_shape, unpack
from lilliput.solve.seeded import ternary

NAME = "share/seeded"
LARGEST = 2**24
"""Elements; more than any network's anchors are, and a file from a stranger may ask for them."""


@dataclass(frozen=True)
class Seeded:
    """A constant of a network, not a way to pack a weight that was trained.

    A module that holds one says so by `packed_buffers()`, which returns by name the `Packed` that make its buffers
    again; a buffer that is still equal to that is written so.

    Attributes:
        seed: 0 to 2^32 - 1.
        kept: how many elements aren't zero.
        again: they are drawn with replacement, so that some coincide.

    >>> Seeded.unpack(Seeded(seed=1, kept=2).make((4,)))
    tensor([ 0., -1.,  0., -1.])
    """

    seed: int = 0
    kept: int = 0
    again: bool = False

    def make(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Packed:
        """Returns the constant of this shape."""
        return Packed(NAME, tuple(shape), dtype, {}, {"seed": self.seed, "kept": self.kept, "again": self.again})

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Makes the tensor, whole, and keeps of it what a cut kept.

        Raises:
            MethodError: if the settings are others, or it is larger than any network's would be.
        """
        seed, kept, again = (packed.settings.get(name) for name in ("seed", "kept", "again"))
        if type(seed) is not int or type(kept) is not int or type(again) is not bool:
            raise MethodError(f"{NAME}: its settings are damaged")
        whole = [packed.settings.get(f"whole{axis}", size) for axis, size in enumerate(packed.shape)]
        if any(type(size) is not int or size < 0 for size in whole):
            raise MethodError(f"{NAME}: its settings are damaged")
        size = math.prod(map(int, whole))
        check_range(NAME, "its number of elements", size, 0, LARGEST)
        check_range(NAME, "kept", kept, 0, size)
        check_range(NAME, "seed", seed, 0, 2**32 - 1)
        tensor = ternary(tuple(map(int, whole)), seed, kept, again)
        for axis, length in enumerate(packed.shape):
            if f"whole{axis}" in packed.settings:
                indices = packed.tensor(f"axis{axis}", shape=(length,), integer=True).long()
                if length and not 0 <= int(indices.min()) <= int(indices.max()) < tensor.shape[axis]:
                    raise MethodError(f"{NAME}: keeps indices that axis {axis} doesn't have")
                tensor = tensor.index_select(axis, indices)
        return tensor.to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Notes the indices that are kept; the whole tensor is made first, and then cut."""
        before = packed.parts.get(f"axis{axis}")
        indices = kept.to(torch.int32) if before is None else unpack(before)[kept]
        settings = {f"whole{axis}": packed.shape[axis], **packed.settings}
        parts = {**packed.parts, f"axis{axis}": indices}
        return replace(packed, shape=cut_shape(packed, axis, kept), parts=parts, settings=settings)
