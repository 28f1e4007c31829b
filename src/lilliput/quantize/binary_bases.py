"""Sums of binary codes: each filter is a few sign patterns with a magnitude each, fitted in turns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take
from lilliput.quantize.uniform import filters, rows_of

NAME = "quantize/binary_bases"


@dataclass(frozen=True)
class BinaryBases(WeightMethod):
    """w ~ sum_m a_m b_m with b_m in {-1, 1}, a_m one for each filter: least squares over both, in turns.

    Starts greedily, b_m the signs of what is left and a_m its mean magnitude (Guo et al. 2017, "Network sketching",
    arXiv 1706.02021); then for the signs the best magnitudes, a = (B B^T)^-1 B w, and for the magnitudes the best
    signs, the nearest of the 2^m sums to each weight (Xu et al. 2018, arXiv 1802.00150), neither of which can make the
    error larger.

    Attributes:
        bases: how many sign patterns, 1 to 4.
        rounds: of the turns.

    >>> packed = BinaryBases(bases=2).pack(torch.tensor([3.0, 1.0, -1.0, -3.0]))
    >>> BinaryBases.unpack(packed)
    tensor([ 3.,  1., -1., -3.])
    """

    bases: int = 2
    rounds: int = 10

    into = ("scale",)
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "bases", self.bases, 1, 4)
        check_range(NAME, "rounds", self.rounds, 0, 1000)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `codes` (bool, bases x the weight's shape, true for +1) and `scale` (bases x filters, >= 0).

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        per, rows = filters(weight, "row")
        work = rows.double()
        top = work.abs().amax(1, keepdim=True) if work.numel() else work.new_zeros(len(work), 1)
        unit = work / torch.where(top > 0, top, 1)
        signs, scale = fitted(unit, self.bases, self.rounds)
        parts = {
            "codes": (signs > 0).reshape(self.bases, *weight.shape),
            "scale": (scale * top[:, 0]).to(rows.dtype),
        }
        return Packed(NAME, tuple(weight.shape), weight.dtype, parts, {"per": per})

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the sum over the bases, in their order, of +-scale."""
        per = packed.settings.get("per")
        if per not in {"tensor", "row"}:
            raise MethodError(f"{NAME}: per = {per}")
        rows = rows_of(packed.shape, str(per), 0)
        codes = packed.tensor("codes", integer=True)
        if codes.dtype != torch.bool or codes.ndim < 1 or tuple(codes.shape[1:]) != packed.shape:
            raise MethodError(f"{NAME}: codes of {codes.dtype} {tuple(codes.shape)} for {packed.shape}")
        scale = packed.tensor("scale", shape=(len(codes), rows[0]), integer=False)
        if not 1 <= len(codes) <= 8:
            raise MethodError(f"{NAME}: {len(codes)} bases")
        value = scale.new_zeros(rows)
        for signs, own in zip(codes, scale):
            value = value + torch.where(signs.reshape(rows), own[:, None], -own[:, None])
        return value.reshape(packed.shape).to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes from the codes, and along the first axis from the magnitudes of filters."""
        cut = packed.with_parts(codes=take(packed.parts["codes"], axis + 1, kept))
        if packed.settings["per"] == "row" and axis == 0:
            cut = cut.with_parts(scale=take(packed.parts["scale"], 1, kept))
        return replace(cut, shape=cut_shape(packed, axis, kept))

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """One to four sign patterns."""
        return tuple(cls(bases=bases) for bases in (1, 2, 3, 4))


def fitted(rows: Tensor, bases: int, rounds: int) -> tuple[Tensor, Tensor]:
    """Returns signs (bases, rows, n) of +-1 and magnitudes (bases, rows) >= 0 that fit each row.

    Args:
        rows: (rows, n), float64.
        bases: how many.
        rounds: of the turns after the greedy start.
    """
    rest, signs, scale = rows, [], []
    for _ in range(bases):
        b = torch.where(rest >= 0, 1.0, -1.0).to(rows.dtype)
        a = rest.abs().sum(1) / max(rows.shape[1], 1)
        rest = rest - a[:, None] * b
        signs.append(b)
        scale.append(a)
    best = torch.stack(signs), torch.stack(scale)
    for _ in range(rounds):
        scale_now = _magnitudes(rows, best[0])
        signs_now = _nearest(rows, scale_now)
        better = _error(rows, signs_now, scale_now) < _error(rows, *best)
        if not bool(better.any()):
            break
        best = torch.where(better[:, None], signs_now, best[0]), torch.where(better, scale_now, best[1])
    # Magnitudes of at least zero: a negative one is its pattern turned round.
    return torch.where(best[1][:, :, None] < 0, -best[0], best[0]), best[1].abs()


def _error(rows: Tensor, signs: Tensor, scale: Tensor) -> Tensor:
    return ((signs * scale[:, :, None]).sum(0) - rows).square().sum(1)


def _magnitudes(rows: Tensor, signs: Tensor) -> Tensor:
    b = signs.transpose(0, 1)
    gram = b @ b.transpose(1, 2)
    lift = 1e-9 * max(rows.shape[1], 1) * torch.eye(len(signs), dtype=rows.dtype, device=rows.device)
    solved: Tensor = torch.linalg.solve(gram + lift, b @ rows[:, :, None])
    return solved[:, :, 0].T


def _nearest(rows: Tensor, scale: Tensor) -> Tensor:
    bases = len(scale)
    number = torch.arange(2**bases, device=rows.device)
    patterns = torch.stack([((number >> m) & 1) * 2.0 - 1 for m in range(bases)], 1).to(rows.dtype)
    sums, order = (scale.T @ patterns.T).sort(1)
    middle = ((sums[:, 1:] + sums[:, :-1]) / 2).contiguous()
    place = torch.searchsorted(middle, rows.contiguous())
    return patterns[order.gather(1, place)].movedim(2, 0)
