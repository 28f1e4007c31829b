"""16-bit floats: IEEE half precision or bfloat16, rounded half to even."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take

NAME = "quantize/float16"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Float16(WeightMethod):
    """Stores weights in 16 bits: 1-5-10 (half, largest 65504) or 1-8-7 (bfloat16, the range of float32).

    Attributes:
        form: `"float16"` or `"bfloat16"`.

    >>> Float16().unpack(Float16().pack(torch.tensor([1 / 3])))
    tensor([0.3333])
    """

    form: Literal["float16", "bfloat16"] = "float16"

    def __post_init__(self) -> None:
        if self.form not in DTYPES:
            raise MethodError(f"{NAME}: no form '{self.form}'; there are {', '.join(DTYPES)}")

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to one part, `values`.

        Raises:
            MethodError: if a weight isn't finite, or becomes infinite in half precision (|w| >= 65520).
        """
        check_weight(weight, NAME)
        values = weight.to(DTYPES[self.form])
        if not bool(torch.isfinite(values).all()):
            raise MethodError(f"{NAME}: weights up to {weight.abs().max():.4g} overflow {self.form}; use bfloat16")
        return Packed(NAME, tuple(weight.shape), weight.dtype, {"values": values})

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the values in the weight's own dtype."""
        return packed.tensor("values", shape=packed.shape, integer=False).to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes from the values."""
        values = take(packed.parts["values"], axis, kept)
        return replace(packed, shape=cut_shape(packed, axis, kept), parts={"values": values})

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """bfloat16 keeps 8 significant bits, half precision 11."""
        return cls("bfloat16"), cls("float16")
