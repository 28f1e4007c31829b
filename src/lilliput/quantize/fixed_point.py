"""Dynamic fixed point: integers with one power-of-two scale a tensor, and the analysis that finds how few bits do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range, check_weight
from lilliput.core.layers import weights
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.quantize.uniform import Uniform, on_grid
from lilliput.solve.rounding import Rounding, ceil_log2, rounded

NAME = "quantize/fixed_point"
SMALLEST = 126
"""Most fraction bits: a step of 2^-126 is float32's smallest normal number."""


@dataclass(frozen=True)
class FixedPoint(WeightMethod):
    """value = code 2^-fl, codes of `bits` bits in two's complement, fl = bits - il and il = ceil(log2 max|w|) + 1.

    Ristretto (Gysel, Motamedi and Ghiasi 2016, arXiv 1604.03168). il, the bits before the point, counts the sign; fl
    may be negative or larger than `bits`. Clipped to -2^(bits-1) .. 2^(bits-1) - 1, then rounded half away from zero.
    Where max|w| is a power of two it saturates to (1 - 2^(1-bits)) max|w|.

    Attributes:
        bits: of a code, 1 to 16.
        stochastic: while training, round at random to either neighbour in proportion to nearness, so that the mean is
            the weight; the file holds the nearest.

    >>> packed = FixedPoint(bits=8).pack(torch.tensor([0.9, -0.74, 0.0]))
    >>> packed.parts["codes"].tolist(), packed.parts["scale"].tolist()
    ([115, -95, 0], [0.0078125])
    """

    bits: int = 8
    stochastic: bool = False

    keeps_zeros = True
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 1, 16)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform` with one scale, a power of two.

        Raises:
            MethodError: if a weight isn't finite.
        """
        return self._rounded(weight, "half_away")

    def draw(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs with random rounding, if asked for."""
        return self._rounded(weight, "stochastic" if self.stochastic else "half_away")

    def _rounded(self, weight: Tensor, how: Rounding) -> Packed:
        check_weight(weight, NAME)
        fraction = fraction_bits(weight, self.bits)
        top = 2 ** (self.bits - 1) - 1
        # A lowest code that overflows the weight's own dtype can't be used.
        low = -top - 1 if (top + 1) * 2.0**-fraction <= torch.finfo(weight.dtype).max else -top
        codes = rounded((weight.double() * 2.0**fraction).clamp(low, top), how).clamp(low, top)
        scale = weight.new_full((1,), 2.0**-fraction, dtype=torch.promote_types(weight.dtype, torch.float32))
        return on_grid(weight, codes, scale)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """4 to 16 bits."""
        return tuple(cls(bits=bits) for bits in (4, 8, 16))


def fraction_bits(weight: Tensor, bits: int) -> int:
    """Returns fl, the bits behind the point: `bits` - ceil(log2 max|w|) - 1; 0 for a weight of zeros.

    >>> [fraction_bits(torch.tensor([largest]), 8) for largest in (0.9, 1.0, 300.0)]
    [7, 7, -2]
    """
    largest = float(weight.detach().double().abs().max()) if weight.numel() else 0.0
    return min(bits - ceil_log2(largest) - 1, SMALLEST) if largest else 0


def trim(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    *,
    drop: float = 0.01,
    bits: Sequence[int] = (16, 8, 4, 2, 1),
) -> Recipe:
    """Finds the fewest bits for the weights of each kind of layer alone, the rest as it is: Ristretto's trimming.

    Args:
        model: a trained model; it is not changed.
        evaluate: higher is better.
        drop: largest loss of the metric for one kind of layer.
        bits: tried in this order, until one loses more.

    Returns:
        A recipe with one rule for each kind of layer (convolutions, linear layers ...), its `why` the metric found;
        a kind that can't be trimmed has none. Evaluate it as a whole before use: losses add up.

    >>> model = nn.Linear(4, 2)
    >>> recipe = trim(model, lambda m: -float((m.weight - model.weight).abs().max()), drop=0.01)
    >>> recipe.rules[0].layers, recipe.rules[0].steps[0].bits in (8, 16)
    ('linear', True)
    """
    baseline = evaluate(model)
    rules = []
    for kind in dict.fromkeys(w.kind for w in weights(model) if w.kind != "vector"):
        best: tuple[int, float] | None = None
        for width in bits:
            score = evaluate(_with_bits(model, kind, width))
            if not score >= baseline - drop:
                break
            best = width, score
        if best is not None:
            why = f"{best[1]:.4g} with {best[0]} bits here alone, {baseline:.4g} before"
            rules.append(Rule(layers=kind, steps=(FixedPoint(bits=best[0]),), why=why))
    return Recipe(tuple(rules))


def _with_bits(model: nn.Module, kind: str, bits: int) -> nn.Module:
    work = copy.deepcopy(model)
    with torch.no_grad():
        for weight in weights(work):
            if weight.kind == kind:
                weight.parameter.copy_(unpack(FixedPoint(bits=bits).pack(weight.parameter.detach())))
    return work
