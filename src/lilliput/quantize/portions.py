"""The schedule of incremental quantization: the portion that is quantized grows in a few steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError

NAME = "quantize/portions"


@dataclass(frozen=True)
class Portions:
    """Quantizes the accumulated portions of a method's own `portion`, spread over the first `until` of the training.

    INQ (Zhou et al. 2017, arXiv 1702.03044) retrains after each step; by default as it does ResNets, by halves.

    Attributes:
        portions: accumulated, rising, the last 1.
        until: part of the training at which the last step is made, 0 to 1; the first is made at its start.

    >>> from lilliput.quantize.incremental import Incremental
    >>> [Portions(until=1.0).advance(Incremental(), p).portion for p in (0.0, 0.4, 0.7, 1.0)]
    [0.5, 0.75, 0.875, 1.0]
    """

    portions: tuple[float, ...] = (0.5, 0.75, 0.875, 1.0)
    until: float = 0.7

    def __post_init__(self) -> None:
        object.__setattr__(self, "portions", tuple(float(portion) for portion in self.portions))
        check_range(NAME, "until", self.until, 0, 1)
        rising = list(self.portions) == sorted(self.portions)
        if not self.portions or not rising or self.portions[0] < 0 or self.portions[-1] != 1:
            raise MethodError(f"{NAME}: portions must rise from 0 or more to 1, not {self.portions}")

    def advance(self, method: Any, progress: float) -> Any:
        """Returns the method with the portion of this point of the training.

        Args:
            method: an incremental step with its final setting; any other step is returned as it is.
            progress: part of the training that is over, 0 to 1.
        """
        if not hasattr(method, "portion"):
            return method
        part = 1.0 if self.until == 0 else min(progress / self.until, 1.0)
        last = len(self.portions) - 1
        place = min(int(part * last + 1e-9), last)
        return method if place == last else replace(method, portion=method.portion * self.portions[place])
