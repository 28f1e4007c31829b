"""Uniform grids: which codes there are, the step between two levels, and values as the grid gives them back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Equally spaced levels: value = (code - zero) * scale, zero among them.

    Symmetric: codes -q..q with q = 2^(bits-1) - 1 and zero = 0. Affine: codes 0..2^bits-1 with an integer zero point
    (Jacob et al. 2018, arXiv 1712.05877).

    Attributes:
        bits: of a code, 2 or more if symmetric.
        symmetric: levels symmetric around zero, or affine.

    >>> grid = Grid(4, symmetric=False)
    >>> scale, zero = grid.step(torch.tensor([-1.0]), torch.tensor([2.0]))
    >>> round(float(scale), 6), int(zero), grid.near(torch.tensor([0.0, 9.0]), scale, zero).tolist()
    (0.2, 5, [0.0, 2.0])
    """

    bits: int
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        """The lowest code."""
        return -self.highest if self.symmetric else 0

    @property
    def highest(self) -> int:
        """The highest code."""
        return int(2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1)

    def step(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the scale and the zero point of ranges.

        Args:
            low: where each range begins, any shape; what is above 0 counts as 0. Not looked at if symmetric.
            high: where it ends; what is below 0 counts as 0.

        Returns:
            The scale, 0 for an empty range, and the zero point, a whole number; both of the shape and dtype of `high`.
        """
        if self.symmetric:
            return high / self.highest, torch.zeros_like(high)
        low, high = low.clamp(max=0), high.clamp(min=0)
        # Halved before the difference, so that a range as wide as the dtype's own doesn't overflow.
        scale = (high / 2 - low / 2) / self.highest * 2
        return scale, torch.round(-low / whole(scale)).clamp(0, self.highest)

    def codes(self, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Returns the nearest codes, half to even, floating-point.

        Args:
            values: any shape.
            scale: broadcast to it.
            zero: broadcast to it.
        """
        found = torch.round(values / whole(scale))
        return (found if self.symmetric else found.add_(zero)).clamp_(self.lowest, self.highest)

    def near(self, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Returns the nearest levels; arguments as for `codes`."""
        found = self.codes(values, scale, zero)
        return (found if self.symmetric else found.sub_(zero)).mul_(scale)


def whole(scale: Tensor) -> Tensor:
    """Returns the scale as a divisor, with 1 where it is 0 (all its values are zero).

    >>> whole(torch.tensor([0.0, 0.5])).tolist()
    [1.0, 0.5]
    """
    return torch.where(scale > 0, scale, 1)


def in_units(values: Tensor) -> tuple[Tensor, Tensor]:
    """Divides each row by a power of two, so that its largest magnitude is in 1/2..1 and squares don't overflow.

    Args:
        values: (rows, n), floating-point, finite.

    Returns:
        (rows, n), float32 or better, and the powers, (rows,), float64; 1 where a row is zero.

    >>> in_units(torch.tensor([[3.0, -8.0]]))
    (tensor([[ 0.1875, -0.5000]]), tensor([16.], dtype=torch.float64))
    """
    peak = values.abs().amax(1) if values.numel() else values.new_zeros(len(values))
    exponent = torch.frexp(peak.double()).exponent
    unit = torch.ldexp(torch.ones_like(peak, dtype=torch.float64), exponent)
    kind = torch.promote_types(values.dtype, torch.float32)
    return (values.double() / unit[:, None]).to(kind), unit


def out_of_units(ends: Tensor, unit: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiplies the ends of ranges by the powers that `in_units` gave, within what a dtype can hold.

    >>> out_of_units(torch.tensor([0.5]), torch.tensor([8.0]), torch.float16)
    tensor([4.], dtype=torch.float16)
    """
    most = torch.finfo(dtype).max
    return (ends.double() * unit).clamp(-most, most).to(dtype)
