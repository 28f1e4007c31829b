"""Training in flex16+5: weights, activations and gradients as integers with an exponent that Autoflex predicts."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.checks import check_range
from lilliput.core.errors import ModelError
from lilliput.quantize.flexpoint import Autoflex
from lilliput.train.low_precision.session import Precision, Session

NAME = "train/low_precision/flexpoint"


@dataclass(frozen=True)
class Flexpoint(Precision):
    """t -> k round(t / k), k = 2^-e predicted for each tensor from the largest values that it had before.

    Koster et al. 2017 (arXiv 1711.02213): mantissas of `bits` in two's complement, one exponent a tensor, set before
    the tensor is computed, by `quantize.flexpoint.Autoflex`; what is too large is cut off, counted in `overflows`, and
    makes the next exponent larger. Outputs of all modules, errors, gradients of parameters, and the parameters after
    each step are such tensors; sums within a module are exact. Exponents aren't confined to 5 bits.

    Attributes:
        bits: of a mantissa, 4 to 16.

    >>> Flexpoint(bits=8).value(Session(), "a", torch.tensor([1.0, 0.3]), True)
    tensor([1.0000, 0.2969])
    """

    bits: int = 16

    everywhere = True

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 4, 16)

    def value(self, session: Session, place: str, output: Tensor, training: bool) -> Tensor:
        """Returns an output; in eval mode the exponent stays as it is."""
        return self._flexed(session, f"value {place}", output, training)

    def error(self, session: Session, place: str, gradient: Tensor) -> Tensor:
        """Returns an error."""
        return self._flexed(session, f"error {place}", gradient)

    def slope(self, session: Session, place: str, gradient: Tensor) -> Tensor:
        """Returns a parameter's gradient."""
        return self._flexed(session, f"slope {place}", gradient)

    def weight(self, session: Session, place: str, value: Tensor) -> Tensor:
        """Returns a parameter."""
        return self._flexed(session, f"weight {place}", value)

    def _flexed(self, session: Session, place: str, tensor: Tensor, moves: bool = True) -> Tensor:
        if not tensor.numel():
            return tensor
        largest = float(tensor.abs().max())
        if not largest < torch.inf:
            raise ModelError(f"{place}: NaN or infinity, which flexpoint has no number for; lower the learning rate")
        flex = Autoflex(self.bits)
        if place in session.memory:
            flex.scale, *values = session.memory[place]
            flex.values = deque(values)
        else:
            flex.start([largest] * 10)
        top = 2 ** (self.bits - 1) - 1
        mantissa = torch.round(tensor / flex.scale).clamp(-top - 1, top)
        value = mantissa * flex.scale
        if moves:
            found = int(mantissa.abs().max())
            session.overflows += found >= top
            # A tensor of zeros tells nothing of the next one.
            if found:
                flex.observe(min(found, top))
            session.memory[place] = [flex.scale, *flex.values]
        return value
