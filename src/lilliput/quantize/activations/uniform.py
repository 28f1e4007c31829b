"""Uniform activations: equally spaced levels, calibrated, learned or found anew each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lilliput.core.activations import number
from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.method import ActivationQuantizer
from lilliput.core.solver import solvers_of
from lilliput.observe.ranges import ends
from lilliput.solve.grid import Grid

NAME = "quantize/activations/uniform"
TINY = 2.0**-100
"""Smallest scale: its reciprocal is still a float32."""


@dataclass(frozen=True)
class Uniform(ActivationQuantizer):
    """x -> (clip(round(x / scale) + zero, lowest, highest) - zero) scale, half to even, one scale a tensor.

    Jacob et al. 2018 (arXiv 1712.05877). Affine: codes 0 .. 2^bits - 1, the range extended to hold 0, and an integer
    zero point. Symmetric: codes -q .. q, q = 2^(bits-1) - 1, zero = 0. Unsigned: codes 0 .. 2^bits - 1, zero = 0;
    what is negative becomes 0.

    Static: the range is that of calibration, made narrower by a solver, or fixed by `clip`. Dynamic: it is that of the
    tensor itself, each time. The gradient passes straight through where x isn't clipped. With `learned` the scale is
    trained, by the gradient of LSQ (Esser et al. 2020, arXiv 1902.08153): round(x/s) - x/s inside, the bound
    outside, over sqrt(n q); it starts at 2 mean|x| / sqrt(q) (affine: at the range), q being the highest code.

    Attributes:
        bits: of a code, 1 to 16.
        form: `"affine"`, `"symmetric"` or `"unsigned"`.
        range: `"static"` or `"dynamic"`.
        clip: the range is -clip .. clip (unsigned: 0 .. clip), and needs no calibration; 0: it is calibrated.
        solver: how the range is found from what calibration saw: `"minmax"`, or one of `quantize/solvers`, which sees a
            histogram (`"kl"`, `"mse"`, `"percentile:99.9"`).
        learned: training moves the scale.

    >>> uniform = Uniform(bits=2, clip=1.0, form="unsigned")
    >>> uniform.forward(torch.tensor([-1.0, 0.3, 0.9, 7.0]), uniform.observe(None))
    tensor([0.0000, 0.3333, 1.0000, 1.0000])
    """

    bits: int = 8
    form: Literal["affine", "symmetric", "unsigned"] = "affine"
    range: Literal["static", "dynamic"] = "static"
    clip: float = 0.0
    solver: str = "minmax"
    learned: bool = False

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 2 if self.form == "symmetric" else 1, 16)
        check_range(NAME, "clip", self.clip, 0, 1e30)
        for name, value, known in (
            ("form", self.form, ("affine", "symmetric", "unsigned")),
            ("range", self.range, ("static", "dynamic")),
        ):
            if value not in known:
                raise MethodError(f"{NAME}: no {name} = '{value}'; there are {', '.join(known)}")
        if self.range == "dynamic" and (self.clip or self.learned or self.solver != "minmax"):
            raise MethodError(f"{NAME}: a dynamic range is that of the tensor: without clip, learned and solver")
        if solvers_of(self.solver).range is None or solvers_of(self.solver).needs:
            raise MethodError(f"{NAME}: '{self.solver[:80]}' finds no range of activations; take minmax, kl or mse")

    @property
    def needs(self) -> frozenset[str]:
        """What calibration must collect."""
        if self.range == "dynamic" or self.clip:
            return frozenset()
        return frozenset({"range" if self.solver == "minmax" else "histogram"})

    @property
    def trained(self) -> tuple[str, ...]:
        """The scale, if it is learned."""
        return ("scale",) if self.learned else ()

    @property
    def codes(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        if self.form == "symmetric":
            return 1 - 2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    @property
    def levels(self) -> int:
        """The number of codes."""
        return self.codes[1] - self.codes[0] + 1

    def observe(self, stats: Any) -> dict[str, float]:
        """Returns `scale` (rounded to float32) and `zero`; nothing for a dynamic range.

        Raises:
            MethodError: nothing was calibrated, or only zeros.
        """
        if self.range == "dynamic":
            return {}
        low, high = (-self.clip, self.clip) if self.clip else ends(stats, NAME)
        if self.learned and not self.clip and self.solver == "minmax" and self.form != "affine":
            start = 2 * stats.values["range"].magnitude / self.codes[1] ** 0.5
            return {"scale": _float32(start), "zero": 0}
        if not self.clip and self.solver != "minmax":
            low, high = self._solved(stats)
        return self.between(low, high)

    def between(self, low: float, high: float) -> dict[str, float]:
        """Returns `scale` and `zero` for a range.

        Args:
            low: its lower end.
            high: its upper end.
        """
        bottom, top = self.codes
        if self.form == "affine":
            low, high = min(low, 0.0), max(high, 0.0)
            scale = _float32(high / top - low / top)
            return {"scale": scale, "zero": min(max(round(-low / scale), bottom), top)}
        reach = max(abs(low), abs(high)) if self.form == "symmetric" else max(high, 0.0)
        return {"scale": _float32(reach / top), "zero": 0}

    def _solved(self, stats: Any) -> tuple[float, float]:
        """Asks the solver, with the histogram; the range is never wider than what was seen."""
        solver, seen = solvers_of(self.solver).range, stats.values["histogram"]
        assert solver is not None
        centres, counts = seen.points()
        if self.form == "unsigned":
            counts = counts * (centres[0] > 0)
        low, high = solver.span(centres, Grid(self.bits, self.form == "symmetric"), counts, stats)
        return max(float(low), seen.low), min(float(high), seen.high)

    def forward(self, x: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Returns x on its levels."""
        bottom, top = self.codes
        work = x.to(torch.float32) if x.dtype in {torch.float16, torch.bfloat16} else x
        if self.range == "static":
            scale = max(abs(float(number(numbers, "scale", NAME))), TINY)
            zero = int(number(numbers, "zero", NAME))
            steps = torch.round(work / scale)
            if not zero:
                return (torch.clamp(steps, bottom, top) * scale).to(x.dtype)
            return ((torch.clamp(steps + zero, bottom, top) - zero) * scale).to(x.dtype)
        if self.form == "symmetric":
            scaled = torch.clamp_min(work.abs().amax() / top, TINY)
            return (torch.clamp(torch.round(work / scaled), bottom, top) * scaled).to(x.dtype)
        high = torch.clamp_min(work.amax(), 0.0)
        low = torch.clamp_max(work.amin(), 0.0) if self.form == "affine" else high * 0.0
        scaled = torch.clamp_min((high - low) / top, TINY)
        at = torch.clamp(torch.round(-low / scaled), 0, top)
        return ((torch.clamp(torch.round(work / scaled) + at, 0, top) - at) * scaled).to(x.dtype)

    def gradient(
        self, x: Tensor, numbers: Mapping[str, float], grad: Tensor
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Returns the gradient of x, zero where it is clipped, and of a learned scale."""
        if self.range == "dynamic":
            return (grad if self.form != "unsigned" else grad * (x >= 0)), {}
        bottom, top = self.codes
        scale, zero = max(abs(float(numbers["scale"])), TINY), int(numbers["zero"])
        steps = x.to(torch.promote_types(x.dtype, torch.float32)) / scale
        code = torch.round(steps) + zero
        inside = (code >= bottom) & (code <= top)
        if not self.learned:
            return grad * inside, {}
        slope = torch.clamp(code, bottom, top) - zero - steps * inside
        own = (grad * slope).sum(dtype=torch.float64) / (max(x.numel(), 1) * top) ** 0.5
        return grad * inside, {"scale": own * (1 if numbers["scale"] >= 0 else -1)}

    def describe(self, numbers: Mapping[str, float]) -> str:
        """Returns bits, form, scale and zero."""
        words = f"{self.bits} bits {self.form}"
        if self.range == "dynamic":
            return f"{words}, dynamic"
        return f"{words}, scale {numbers.get('scale', 0):.4g}, zero {numbers.get('zero', 0):.0f}"

    @classmethod
    def choices(cls) -> tuple[ActivationQuantizer, ...]:
        """2 to 8 bits, static and affine."""
        return tuple(cls(bits=bits) for bits in (2, 3, 4, 6, 8))


def _float32(value: float) -> float:
    return max(float(torch.tensor(value, dtype=torch.float32)), TINY)
