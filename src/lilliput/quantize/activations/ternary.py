"""Ternary activations: -1, 0 or +1, at random in training if asked for (TNN)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.method import ActivationQuantizer

NAME = "quantize/activations/ternary"


@dataclass(frozen=True)
class Ternary(ActivationQuantizer):
    """x -> +1 where x > threshold, -1 where x < -threshold, else 0; the gradient passes where |x| <= 1.

    Alemdar et al. 2017 (arXiv 1609.00222). Stochastic: while training sign(r) with probability |r|, else 0, where
    r = clip(x, -1, 1), so that the mean is r; put a tanh before it for the paper's other choice. A threshold for each
    channel is an affine map before it, such as a BatchNorm's.

    Attributes:
        threshold: below which a magnitude becomes 0, above 0 up to 1; 1/2 is nearest in value.
        stochastic: draw while training.

    >>> Ternary().forward(torch.tensor([0.7, -0.6, 0.5, 0.0]), {})
    tensor([ 1., -1.,  0.,  0.])
    """

    threshold: float = 0.5
    stochastic: bool = False

    def __post_init__(self) -> None:
        check_range(NAME, "threshold", self.threshold, 1e-30, 1)

    @property
    def levels(self) -> int:
        """3."""
        return 3

    def observe(self, stats: Any) -> dict[str, float]:
        """Returns no numbers: there is nothing to calibrate."""
        return {}

    def forward(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns -1, 0 and +1."""
        return torch.where(x > self.threshold, 1, torch.where(x < -self.threshold, -1, 0)).to(x.dtype)

    def draw(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns -1, 0 and +1, at random if asked for."""
        if not self.stochastic:
            return self.forward(x, numbers)
        fired = torch.rand_like(x, dtype=torch.float32) < x.abs()
        return torch.sign(x) * fired

    def gradient(
        self, x: Tensor, numbers: Mapping[str, float], grad: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Returns the gradient where |x| <= 1, else 0."""
        return grad * (x.abs() <= 1), {}

    def describe(self, numbers: Mapping[str, float]) -> str:
        """Returns the threshold."""
        return f"threshold {self.threshold:.4g}"

    @classmethod
    def choices(cls) -> tuple[ActivationQuantizer, ...]:
        """The plain one."""
        return (cls(),)
