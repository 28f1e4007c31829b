"""DoReFa-Net's gradients: k bits of each example's largest error, with noise that makes them right in the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range
from lilliput.train.low_precision.session import Precision, Session

NAME = "train/low_precision/dorefa"


@dataclass(frozen=True)
class Dorefa(Precision):
    """f(g) = 2 m [q_k(g / (2 m) + 1/2 + N) - 1/2], m = max|g| of the example, N uniform within half a step.

    Zhou et al. 2016 (arXiv 1606.06160): q_k(r) = round((2^k - 1) r) / (2^k - 1) with r clipped to 0 .. 1. It rounds
    the errors at the outputs of layers, from which both the layer's own gradient and the error before it are
    computed. The first and the last layer are left alone. Right in the mean but within half a step of +-m.

    Attributes:
        bits: k, 1 to 16.
        noise: add N.
        ends: round the first and the last layer's errors too.

    >>> Dorefa(bits=2, noise=False).error(Session(), "", torch.tensor([[3.0, 0.9, -3.0]]))
    tensor([[ 3.0000,  1.0000, -3.0000]])
    """

    bits: int = 6
    noise: bool = True
    ends: bool = False

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 1, 16)

    def layers(self, model: nn.Module, match: str) -> dict[str, nn.Module]:
        """Returns linear layers and convolutions; without the first and the last if all are asked for."""
        found = Precision.layers(self, model, match)
        names = list(found)
        return {name: found[name] for name in (names if self.ends or match != "*" else names[1:-1])}

    def error(self, session: Session, place: str, gradient: Tensor) -> Tensor:
        """Returns the rounded gradient.

        Args:
            session: not used.
            place: not used.
            gradient: (examples, ...); the noise is drawn from torch's global generator.
        """
        if not gradient.numel():
            return gradient
        largest = gradient.abs().reshape(len(gradient), -1).amax(1).reshape(-1, *[1] * (gradient.ndim - 1))
        top = 2**self.bits - 1
        unit = gradient / (2 * torch.where(largest > 0, largest, 1)) + 0.5
        if self.noise:
            unit = unit + (torch.rand_like(unit) - 0.5) / top
        level: Tensor = torch.round(unit.clamp(0, 1) * top) / top - 0.5
        return 2 * largest * level
