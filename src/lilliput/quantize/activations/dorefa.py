"""DoReFa-Net's activations: clipped to 0 .. 1, then equally spaced levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.method import ActivationQuantizer

NAME = "quantize/activations/dorefa"


@dataclass(frozen=True)
class Dorefa(ActivationQuantizer):
    """x -> q_k(clip(x, 0, 1)), q_k(r) = round((2^k - 1) r) / (2^k - 1), half to even.

    Zhou et al. 2016 (arXiv 1606.06160). The gradient is that of the clipping: it passes where 0 <= x <= 1. Levels are
    fixed, so that a network must be trained with it.

    Attributes:
        bits: k, 1 to 8.

    >>> Dorefa(bits=2).forward(torch.tensor([-1.0, 0.3, 0.6, 2.0]), {})
    tensor([0.0000, 0.3333, 0.6667, 1.0000])
    """

    bits: int = 2

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 1, 8)

    @property
    def levels(self) -> int:
        """2^k."""
        return int(2**self.bits)

    def observe(self, stats: Any) -> dict[str, float]:
        """Returns no numbers: there is nothing to calibrate."""
        return {}

    def forward(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns x on its levels."""
        work = x.to(torch.float32) if x.dtype in {torch.float16, torch.bfloat16} else x
        top = self.levels - 1
        return (torch.round(torch.clamp(work, 0, 1) * top) / top).to(x.dtype)

    def gradient(
        self, x: Tensor, numbers: Mapping[str, float], grad: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Returns the gradient where 0 <= x <= 1, else 0."""
        return grad * ((x >= 0) & (x <= 1)), {}

    def describe(self, numbers: Mapping[str, float]) -> str:
        """Returns the bits."""
        return f"{self.bits} bits"

    @classmethod
    def choices(cls) -> tuple[ActivationQuantizer, ...]:
        """1 to 8 bits."""
        return tuple(cls(bits=bits) for bits in (1, 2, 4, 8))
