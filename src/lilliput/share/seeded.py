"""Fixed tensors of -1, 0 and 1 that a seed makes again, as LBCNN's anchors: in a file they cost the seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.packed import Packed
from lilliput.solve.seeded import ternary

NAME = "share/seeded"
LARGEST = 2**28
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
        """Makes the tensor.

        Raises:
            MethodError: if the settings are others, or it is larger than any network's would be.
        """
        seed, kept, again = (packed.settings.get(name) for name in ("seed", "kept", "again"))
        if type(seed) is not int or type(kept) is not int or type(again) is not bool or packed.parts:
            raise MethodError(f"{NAME}: its settings are damaged")
        size = torch.Size(packed.shape).numel()
        check_range(NAME, "its number of elements", size, 0, LARGEST)
        check_range(NAME, "kept", kept, 0, size)
        check_range(NAME, "seed", seed, 0, 2**32 - 1)
        return ternary(packed.shape, seed, kept, again).to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """A part of it can't be made without the rest."""
        raise NotWorthwhile(f"{NAME} can't be cut")
