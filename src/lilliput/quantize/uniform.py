"""Uniform quantization: equally spaced levels, symmetric or affine, per tensor, row or group, 1 to 16 bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.core.solver import solvers_of
from lilliput.solve.grid import Grid, whole
from lilliput.solve.levels import GridLevels

NAME = "quantize/uniform"


@dataclass(frozen=True)
class Uniform(WeightMethod):
    """Rounds weights to equally spaced levels: code = round(w / scale) + zero, half to even.

    Symmetric: codes -q..q with q = 2^(bits-1) - 1 and scale = max|w| / q, so that zero is a level; with 1 bit the
    codes are the signs and scale = mean|w|, the least-squares optimum (Rastegari et al. 2016, arXiv 1603.05279).
    Affine: codes 0..2^bits-1, the range extended to hold 0, and an integer zero point, so that zero is a level again
    (Jacob et al. 2018, arXiv 1712.05877). An exact zero always comes back as an exact zero.

    What `solver` names finds the ranges (`minmax` is the rule above; `percentile`, `mse`, `hqq`, `rate`, ... clip or
    choose otherwise) and the roundings (`gptq` and `adaround`, which need data), as in `"mse+gptq"`; settings follow
    a colon, `"percentile:99.9"`. `lilliput list quantize/solvers` names them all.

    With `cell_mean`, a level stands where the mean of its weights lies, in units of the scale, instead of on the grid:
    the conditional mean minimises the squared error of given cells (Lloyd 1982), rows counted by their scale, and
    an entropy coder makes the uneven use of the levels cheap.

    Attributes:
        bits: bits per code, 1 to 16, affine 1 to 8.
        symmetric: levels symmetric around zero, or affine.
        per: one scale per tensor, per row (first axis) or per group of `group` weights within a row.
        group: weights in a group; must divide the weights of a row.
        cell_mean: store the mean of each cell as its level.
        solver: how ranges and roundings are found; see above.

    >>> packed = Uniform(bits=2, per="tensor").pack(torch.tensor([0.9, -1.0, 0.1]))
    >>> packed.parts["codes"].tolist(), packed.parts["scale"].tolist()
    ([1, -1, 0], [1.0])
    """

    bits: int = 8
    symmetric: bool = True
    per: Literal["tensor", "row", "group"] = "row"
    group: int = 128
    cell_mean: bool = False
    solver: str = "minmax"

    into = ("scale", "levels")
    keeps_zeros = True

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 1, 16 if self.symmetric else 8)
        check_range(NAME, "group", self.group, 1, 2**31)
        if self.per not in {"tensor", "row", "group"}:
            raise MethodError(f"{NAME}: no per = '{self.per}'; there are tensor, row, group")
        solvers = solvers_of(self.solver)
        if self.cell_mean and solvers.rounding is not None:
            raise MethodError(f"{NAME}: cell_mean is for weights that go to the nearest level, not for '{self.solver}'")
        if self.bits == 1 and self.symmetric and solvers.range not in {None, solvers_of("minmax").range}:
            raise MethodError(f"{NAME}: the one scale of 1 bit is mean|w|; '{self.solver}' has no say in it")
        if solvers.needs:
            # What is needed depends on a setting, so that this instance differs from its class.
            object.__setattr__(self, "needs", solvers.needs)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to parts `codes` (int8, int16 or uint8, dense), `scale`, and `zero` and `levels` where they are used.

        Raises:
            MethodError: if a weight isn't finite, the group size doesn't divide a row, or the solver lacks its data.
        """
        check_weight(weight, NAME)
        rows = rows_of(tuple(weight.shape), self.per, self.group)
        work = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).reshape(rows)
        codes, parts = self._coded(work, weight, stats)
        settings = {"per": self.per, "group": self.group if self.per == "group" else 0}
        packed = Packed(
            NAME, tuple(weight.shape), weight.dtype, {"codes": codes.reshape(weight.shape), **parts}, settings
        )
        return self._with_levels(packed, work) if self.cell_mean else packed

    @property
    def grid(self) -> Grid:
        """The codes that there may be."""
        return Grid(self.bits, self.symmetric)

    def _coded(self, work: Tensor, weight: Tensor, stats: object) -> tuple[Tensor, dict[str, Tensor]]:
        """The codes, of the shape of `work`, and the parts beside them."""
        scale, zero = self._steps(work, stats)
        rounding = solvers_of(self.solver).rounding
        if rounding is not None and work.numel():
            codes = self._placed(work, weight, scale, zero, stats)
        elif self.bits == 1 and self.symmetric:
            codes = torch.sign(work)
        else:
            codes = self.grid.codes(work, scale[:, None], zero[:, None])
        if self.symmetric:
            return codes.to(torch.int8 if self.bits <= 8 else torch.int16), {"scale": scale}
        return codes.to(torch.uint8), {"scale": scale, "zero": zero.to(torch.uint8)}

    def _steps(self, work: Tensor, stats: object) -> tuple[Tensor, Tensor]:
        """The scale and the zero point of each row of `work`."""
        if self.bits == 1 and self.symmetric:
            live = (work != 0).sum(1)
            # Summed in double: the sum of a row may be larger than any float32.
            scale = (work.abs().double().sum(1) / live.clamp(min=1)).to(work.dtype)
            return scale, torch.zeros_like(scale)
        solver = solvers_of(self.solver).range or solvers_of("minmax").range
        assert solver is not None
        return self.grid.step(*solver.span(work, self.grid, stats=stats))

    def _placed(self, work: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, stats: object) -> Tensor:
        """The codes that the rounding solver chooses, of the shape of `work`."""
        solver = solvers_of(self.solver).rounding
        assert solver is not None
        size = 2.0 ** float(torch.frexp(work.abs().max().double()).exponent)
        shape = (weight.shape[0], -1) if weight.ndim else (1, 1)
        step = (scale.double() / size).to(work.dtype)[:, None].expand(work.shape)
        shift = zero[:, None].expand(work.shape)
        levels = GridLevels(self.grid, step.reshape(shape), shift.reshape(shape))
        scaled = (work.double() / size).to(work.dtype)
        values = solver.settle(scaled.reshape(shape), levels, stats).reshape(work.shape)
        return torch.round(values / whole(step)).add_(shift)

    def _with_levels(self, packed: Packed, work: Tensor) -> Packed:
        """Adds the mean of each cell in units of the scale, shared by all rows; the cell of exact zeros stays zero.

        A row's weights count by the square of its scale s, so that sum (w - s level)^2 over all rows is least.
        """
        steps = centred(packed, (work.shape[0], work.shape[1])).flatten()
        scale = packed.tensor("scale").double()
        unit = (work.double() / whole(scale)[:, None]).flatten()
        share = (scale / scale.max().clamp(min=1e-300) if len(scale) else scale).square()
        share = share.repeat_interleave(work.shape[1])
        lowest, count = level_range(packed)
        index = steps.long() - lowest
        weight = torch.bincount(index, weights=share, minlength=count)
        # bincount sums in order: the same bytes on every machine, unlike a parallel scatter.
        total = torch.bincount(index, weights=unit * share, minlength=count)
        grid = torch.arange(lowest, lowest + count, dtype=torch.float64)
        levels = torch.where(weight > 0, total / torch.where(weight > 0, weight, 1), grid)
        if bool((work == 0).any()):
            levels[-lowest] = 0
        return packed.with_parts(levels=levels.to(work.dtype))

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns (codes - zero) * scale, or levels[codes - zero] * scale."""
        shape = packed.shape
        per, group = packed.settings.get("per"), packed.settings.get("group")
        if per not in {"tensor", "row", "group"} or type(group) is not int or not 0 <= group <= 2**31:
            raise MethodError(f"{NAME}: unknown settings {dict(packed.settings)}")
        rows = rows_of(shape, str(per), group)
        packed.tensor("codes", shape=shape, integer=True)
        scale = packed.tensor("scale", shape=rows[:1], integer=False)
        steps = centred(packed, rows)
        if "levels" in packed.parts:
            lowest, count = level_range(packed)
            levels = packed.tensor("levels", shape=(count,), integer=False)
            values = levels.to(scale.dtype)[steps.long() - lowest]
        else:
            values = steps.to(scale.dtype)
        return (values * scale[:, None]).reshape(shape).to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes from the codes, and along the first axis from the scales of rows; groups stay whole.

        Raises:
            NotWorthwhile: if the scales are those of groups.
        """
        if packed.settings["per"] == "group":
            raise NotWorthwhile(f"{NAME}: a weight with a scale for each group can't be cut")
        codes = packed.tensor("codes").index_select(axis, kept)
        cut = replace(packed.with_parts(codes=codes), shape=cut_shape(packed, axis, kept))
        if packed.settings["per"] == "row" and axis == 0:
            rows = {name: take(packed.parts[name], 0, kept) for name in ("scale", "zero") if name in packed.parts}
            cut = cut.with_parts(**rows)
        if "levels" in packed.parts:
            before, (lowest, count) = level_range(packed)[0], level_range(cut)
            stay = torch.arange(lowest - before, lowest - before + count, device=kept.device)
            cut = cut.with_parts(levels=take(packed.parts["levels"], 0, stay))
        return cut

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """2 to 8 bits, symmetric, per row; cell means where they are few."""
        return tuple(replace(cls(), bits=bits, cell_mean=bits <= 5) for bits in range(2, 9))


def on_grid(weight: Tensor, codes: Tensor, scale: Tensor, per: str = "tensor", group: int = 0) -> Packed:
    """Returns the packed form code * scale, for methods that find codes and scales in a way of their own.

    Args:
        weight: what was packed.
        codes: integers within 16 bits, of any dtype and as many as the weight has; held as int8 if they fit.
        scale: one a tensor, row or group.
        per: as in `Uniform`.
        group: as in `Uniform`; 0 unless `per` is `"group"`.
    """
    wide = codes.reshape(weight.shape).to(torch.int16)
    low, high = (int(end) for end in wide.aminmax()) if wide.numel() else (0, 0)
    held = wide.to(torch.int8) if low >= -128 and high <= 127 else wide
    return Packed(
        NAME, tuple(weight.shape), weight.dtype, {"codes": held, "scale": scale}, {"per": per, "group": group}
    )


def filters(weight: Tensor, per: str) -> tuple[str, Tensor]:
    """Returns a weight as a matrix with one row for each scale, at least float32, and what `per` then is.

    Args:
        weight: any shape.
        per: `"tensor"` or `"row"`; a weight of fewer than two axes has one scale in any case.
    """
    per = per if weight.ndim > 1 else "tensor"
    work = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    return per, work.reshape(rows_of(tuple(weight.shape), per, 0))


def rows_of(shape: tuple[int, ...], per: str, group: int) -> tuple[int, int]:
    """Returns the (rows, weights per row) that share one scale each.

    Raises:
        MethodError: if the group size doesn't divide a row.
    """
    numel = torch.Size(shape).numel()
    if per == "tensor" or not shape:
        return 1, numel
    if per == "row":
        return shape[0], numel // max(shape[0], 1)
    inner = numel // max(shape[0], 1)
    if group < 1 or inner % group:
        raise MethodError(f"{NAME}: groups of {group} don't divide rows of {inner} weights (shape {shape})")
    return numel // group, group


def centred(packed: Packed, rows: tuple[int, int]) -> Tensor:
    """Returns the codes less their zero point, int16 of shape `rows`; checks what may come from a stranger."""
    codes = packed.tensor("codes", integer=True)
    affine = "zero" in packed.parts
    if codes.dtype not in ({torch.uint8} if affine else {torch.int8, torch.int16}):
        raise MethodError(f"{NAME}: codes of dtype {codes.dtype}")
    wide = codes.reshape(rows).to(torch.int16)
    if not affine:
        return wide
    zero = packed.tensor("zero", shape=rows[:1], integer=True)
    if zero.dtype != torch.uint8:
        raise MethodError(f"{NAME}: zero points of dtype {zero.dtype}")
    return wide - zero.to(torch.int16)[:, None]


def level_range(packed: Packed) -> tuple[int, int]:
    """Returns the lowest step and the number of levels of a table that covers the codes."""
    steps = centred(packed, rows_of(packed.shape, str(packed.settings["per"]), int(packed.settings["group"])))
    if not steps.numel():
        return 0, 1
    low, high = min(int(steps.min()), 0), max(int(steps.max()), 0)
    return low, high - low + 1
