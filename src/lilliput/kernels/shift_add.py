"""Layers of powers of two in integers: what goes in is shifted and added, never multiplied; in plain torch integers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed
from lilliput.kernels.int8 import convolved

FORMS = ("quantize/power_of_two", "quantize/incremental")
ROOM = 62
"""Bits of a total, less its sign and one in reserve."""

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]


@dataclass(frozen=True, eq=False)
class ShiftLayer:
    """A linear layer or a two-dimensional convolution whose weights are sums of signed powers of two.

    sum_i sum_t sign(c_ti) (q_i << (deepest + e_ti)), e the exponents: 2^deepest times the exact product of the integers
    q with the weights (Gudovskiy and Rigazio 2017, arXiv 1706.02393: N shifts and adds a weight, no multiplication).
    Each input is shifted once by each distance that there is, which is ShiftCNN's table; a weight then picks from it.

    Attributes:
        codes: terms x the weight's shape, as `quantize/power_of_two` packs them.
        top: exponent of code 1 in the first term.
        deepest: minus the least exponent of any weight; what a total has to be shifted back by.
        scale: a factor for all that comes out, or None.
        geometry: stride, padding, dilation and groups of a convolution; None for a linear layer.
    """

    codes: Tensor
    top: int
    deepest: int
    scale: Tensor | None = None
    geometry: Geometry | None = None

    @property
    def table(self) -> tuple[int, ...]:
        """The distances by which inputs are shifted, over all terms."""
        return tuple(sorted(set(self._places()[self.codes != 0].tolist())))

    def total(self, x: Tensor) -> Tensor:
        """Returns 2^deepest times the products, int64, exact; outputs last (linear) or second (convolution).

        Args:
            x: integers that go in, of any integer type.

        Raises:
            MethodError: x holds no integers, or a total could be beyond 63 bits.
        """
        if x.dtype.is_floating_point or x.dtype == torch.bool:
            raise MethodError(f"shifts take integers, not {x.dtype}: give the codes of a quantizer")
        wide, places, table = x.long(), self._places(), self.table
        if not table or not x.numel():
            return self._applied(wide, torch.zeros(self.codes.shape[1:], dtype=torch.int64))
        inputs = self.codes[0][0].numel() * len(self.codes)
        needed = int(wide.abs().max()).bit_length() + table[-1] + inputs.bit_length()
        if needed > ROOM:
            raise MethodError(
                f"a total could take {needed} bits: {ROOM} are there; take fewer bits of inputs or weights"
            )
        total = torch.zeros((), dtype=torch.int64)
        for distance in table:
            picked = (torch.sign(self.codes.long()) * (places == distance)).sum(0)
            total = total + self._applied(torch.bitwise_left_shift(wide, distance), picked)
        return total

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the products with the weights themselves, float64: exact if there is no scale."""
        total = self.total(x).double() * 2.0**-self.deepest
        return total if self.scale is None else total * self.scale.double()

    def _places(self) -> Tensor:
        """How far each term of each weight shifts; not below 0 where the code isn't 0."""
        terms = torch.arange(len(self.codes)).reshape(-1, *[1] * (self.codes.ndim - 1))
        return self.deepest + self.top - terms + 1 - self.codes.long().abs()

    def _applied(self, x: Tensor, picked: Tensor) -> Tensor:
        # `picked` is -N .. N: adding an input so often is what the product does; shifts are done already.
        return x @ picked.T if self.geometry is None else convolved(x, picked, self.geometry)


def shift_layer(packed: Packed, geometry: Geometry | None = None) -> ShiftLayer:
    """Makes a layer of shifts and adds of a packed weight.

    Args:
        packed: by `quantize/power_of_two`, `quantize/shift`, or `quantize/incremental` once all of it is quantized.
        geometry: see `ShiftLayer`.

    Raises:
        MethodError: a weight in another form, or of too few or many dimensions.

    >>> from lilliput.quantize.shift import Shift
    >>> layer = shift_layer(Shift(terms=1).pack(torch.tensor([[1.0, -0.25]])))
    >>> layer.deepest, layer.total(torch.tensor([[3, 4]])).tolist()  # 4 (3 - 4 / 4)
    (2, [[8]])
    """
    if packed.method not in FORMS:
        raise MethodError(f"{packed.method}: shifts and adds need powers of two, the form of {' or '.join(FORMS)}")
    if len(packed.shape) != (2 if geometry is None else 4):
        what = "linear layer" if geometry is None else "two-dimensional convolution"
        raise MethodError(f"a weight of {tuple(packed.shape)} is none of a {what}")
    codes, top = packed.tensor("codes", integer=True), int(packed.settings["top"])
    if packed.method == FORMS[1]:
        if packed.tensor("values").numel():
            raise MethodError(
                f"{packed.method}: some weights aren't powers of two yet: train to the end of the portions"
            )
        codes = codes[None]
    terms = torch.arange(len(codes)).reshape(-1, *[1] * (codes.ndim - 1))
    exponents = (top - terms + 1 - codes.long().abs())[codes != 0]
    deepest = -int(exponents.min()) if len(exponents) else 0
    scale = packed.tensor("scale", integer=False) if "scale" in packed.parts else None
    return ShiftLayer(codes, top, deepest, scale, geometry)
