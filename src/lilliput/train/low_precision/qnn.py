"""QNN's gradients: signed powers of two, which turn the multiplications of the backward pass into shifts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.solve.rounding import exponent_near
from lilliput.train.low_precision.session import Precision, Session

NAME = "train/low_precision/qnn"


@dataclass(frozen=True)
class Qnn(Precision):
    """g -> sign(g) 2^round(log2 |g|), with 2^(bits-1) - 1 powers from that of the largest downwards, and 0.

    Hubara et al. 2016 (arXiv 1609.07061), LogQuant of the errors at the outputs of layers, one range a tensor. What
    lies below sqrt(1/2) of the least power becomes 0; else it is wrong by at most 41.4 % upwards and 29.3 % down.

    Attributes:
        bits: 2 to 8.

    >>> Qnn(bits=3).error(Session(), "", torch.tensor([1.5, 0.3, -0.2, 0.1]))
    tensor([ 2.0000,  0.0000, -0.0000,  0.0000])
    """

    bits: int = 6

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 2, 8)

    def error(self, session: Session, place: str, gradient: Tensor) -> Tensor:
        """Returns the rounded gradient, any shape."""
        if not gradient.numel() or not bool(torch.isfinite(gradient).all()):
            return gradient
        exponent = exponent_near(gradient, "log")
        top = int(exponent.max())
        least = top - (2 ** (self.bits - 1) - 2)
        power = torch.ldexp(torch.ones_like(gradient), exponent.clamp(min=-148))
        return torch.where(exponent >= least, torch.sign(gradient) * power, 0)
