"""Mixed precision: 16-bit floats forward and backward, float32 masters, and a loss scale that looks after itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.train.low_precision.session import Precision, Session

NAME = "train/low_precision/float16"


@dataclass(frozen=True)
class Float16(Precision):
    """Weights, outputs of layers, errors and gradients rounded to 16 bits; sums, norms and the update in float32.

    Micikevicius et al. 2018 (arXiv 1710.03740). Gradients below 2^-24 would vanish in half precision: they are
    multiplied by a scale on their way back and divided before the update. A step with an infinite gradient is left
    out and halves the scale; `growth` clean steps double it. Numbers are rounded as 16-bit hardware would hold them, on
    any machine; where yours computes in them, torch.autocast is the quicker way.

    Attributes:
        form: `"half"` or `"bfloat16"`.
        scale: the first loss scale; 0 for none.
        growth: clean steps until the scale is doubled.

    >>> float(Float16().value(Session(), "", torch.tensor(1.0001), True))
    1.0
    """

    form: Literal["half", "bfloat16"] = "half"
    scale: float = 2.0**16
    growth: int = 2000

    masters = True

    def __post_init__(self) -> None:
        if self.form not in {"half", "bfloat16"}:
            raise MethodError(f"{NAME}: no form '{self.form}'; there are half, bfloat16")
        check_range(NAME, "scale", self.scale, 0, 2.0**40)
        check_range(NAME, "growth", self.growth, 1, 2**31)

    @property
    def first_scale(self) -> float:
        """The first loss scale."""
        return self.scale

    def _rounded(self, tensor: Tensor) -> Tensor:
        return tensor.to(torch.float16 if self.form == "half" else torch.bfloat16).to(tensor.dtype)

    def value(self, session: Session, place: str, output: Tensor, training: bool) -> Tensor:
        """Returns an output."""
        return self._rounded(output)

    def error(self, session: Session, place: str, gradient: Tensor) -> Tensor:
        """Returns an error."""
        return self._rounded(gradient)

    def slope(self, session: Session, place: str, gradient: Tensor) -> Tensor:
        """Returns a parameter's gradient, still scaled."""
        return self._rounded(gradient)

    def weight(self, session: Session, place: str, value: Tensor) -> Tensor:
        """Returns a parameter."""
        return self._rounded(value)
