"""Sums of small Tucker blocks: a 1 x 1 convolution, a grouped convolution, and a 1 x 1 convolution back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.factorize import chain
from lilliput.factorize.rank import check_smaller, packed_as, precise
from lilliput.factorize.tucker import Tucker, equal_part
from lilliput.solve import tucker

NAME = "factorize/block_term"


@dataclass(frozen=True)
class BlockTerm(WeightMethod):
    """W ~ sum_g U_g G_g V_g, R blocks of ranks (a, b): Tucker-2 with a block-diagonal core.

    Wang and Cheng 2016 (ACM Multimedia, "Accelerating convolutional neural networks for mobile applications"). It
    holds R (C b + a b kh kw + a N) numbers. One block is Tucker-2; a = b = 1 is CP with whole kernels. The blocks are
    fitted in turn, each to what the others leave (HOOI), which never makes the error larger.

    Attributes:
        blocks: R >= 1.
        rank_out: a of each block; 0 to go by `ratio`.
        rank_in: b of each block; 0 to go by `ratio`.
        ratio: the part of the numbers to be kept, 0 < ratio <= 1.
        rounds: over all blocks.
        force: factorize even where the factors hold more numbers than the weight.

    >>> packed = BlockTerm(blocks=2, rank_out=1, rank_in=1).pack(torch.eye(8)[:, :, None] * torch.ones(3))
    >>> [tuple(part.shape) for part in packed.parts.values()]
    [(8, 2), (2, 1, 3), (2, 8)]
    """

    blocks: int = 4
    rank_out: int = 0
    rank_in: int = 0
    ratio: float = 0.5
    rounds: int = 8
    force: bool = False

    into = ("out", "core", "in")
    training = "parts"
    trained = ("out", "core", "in")

    def __post_init__(self) -> None:
        check_range(NAME, "blocks", self.blocks, 1, 2**20)
        for name in ("rank_out", "rank_in"):
            check_range(NAME, name, getattr(self, name), 0, 2**31)
        check_range(NAME, "ratio", self.ratio, 1e-6, 1)
        check_range(NAME, "rounds", self.rounds, 0, 10**6)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `out` (N, R a), `core` (R a, b, ...) and `in` (R b, C): weights of the three convolutions.

        Raises:
            NotWorthwhile: if the factors would hold more numbers than the weight.
            MethodError: if the weight has fewer than three axes, or isn't finite.
        """
        chain.check_convolution(weight, NAME)
        tensor = precise(weight).flatten(2)
        scale = float(tensor.abs().max()) or 1.0
        out, channels, area = tensor.shape
        part = equal_part((out, channels, area), self.ratio, self.blocks)
        ranks = [
            min(given or max(1, math.floor(part * size / self.blocks + 1e-9)), top)
            for given, size, top in zip((self.rank_out, self.rank_in), (out, channels), _most(tensor))
        ]
        a, b = ranks
        numbers = self.blocks * (channels * b + a * b * area + a * out)
        what = f"{self.blocks} blocks of ranks {a} and {b} of {tuple(weight.shape)}"
        check_smaller(NAME, numbers, weight, what, self.force)
        found = fitted(tensor / scale, (a, b), self.blocks, self.rounds)
        shares = [(float(core.norm()) * scale / math.sqrt(a * b)) ** (1 / 3) or 1.0 for _, _, core in found]
        cores = [core * (scale / share**2) for (_, _, core), share in zip(found, shares)]
        parts = {
            "out": torch.cat([left * share for (left, _, _), share in zip(found, shares)], 1),
            "core": torch.cat(cores).reshape(self.blocks * a, b, *weight.shape[2:]),
            "in": torch.cat([right.T * share for (_, right, _), share in zip(found, shares)]),
        }
        return packed_as(NAME, weight, parts)

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the sum of the blocks in the weight's shape."""
        left, core, right = _checked(packed)
        b = core.shape[1]
        blocks = len(right) // b
        a = len(core) // blocks
        value = left.new_zeros(packed.shape[0], packed.shape[1], core[0, 0].numel())
        for g in range(blocks):
            own, first, last = core[g * a : (g + 1) * a].flatten(2), left[:, g * a : (g + 1) * a], right[g * b :][:b]
            if len(first) * b <= a * last.shape[1]:
                value = value + last.T @ (first @ own.flatten(1)).reshape(len(first), b, -1)
            else:
                value = value + (first @ (last.T @ own).flatten(1)).reshape(value.shape)
        return value.reshape(packed.shape)

    @staticmethod
    def layers(packed: Packed, layer: nn.Module) -> nn.Sequential:
        """Returns the three convolutions that do what `layer` does, the middle one of R groups; see `chain.in_turn`."""
        left, core, right = _checked(packed)
        middle = core, range(core.ndim - 2), len(right) // core.shape[1]
        return chain.in_turn(packed, layer, [(right, (), 1), middle, (left, (), 1)])

    # Rows of `out`, columns of `in`, or positions of the core.
    take = staticmethod(Tucker.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """Two blocks with a quarter, half and three quarters of the numbers."""
        return tuple(cls(blocks=2, ratio=ratio) for ratio in (0.25, 0.5, 0.75))


def fitted(tensor: Tensor, ranks: tuple[int, int], blocks: int, rounds: int) -> list[tucker.Tucker]:
    """Returns the blocks: first one after the other from what is left, then each again, with the others fixed.

    Args:
        tensor: (N, C, S).
        ranks: (a, b) of each block.
        blocks: how many.
        rounds: over all blocks; stops where one gains next to nothing.
    """
    rest = tensor.clone()
    found: list[tucker.Tucker] = []
    for _ in range(blocks):
        found.append(tucker.best(rest, ranks, 10))
        rest = rest - tucker.composed(found[-1])
    error = float(rest.square().sum())
    for _ in range(rounds if blocks > 1 else 0):
        for place, old in enumerate(found):
            rest = rest + tucker.composed(old)
            new = tucker.best(rest, ranks, 2, start=old[1])
            found[place] = max(new, old, key=lambda parts: float(parts[2].square().sum())) if new is not old else old
            rest = rest - tucker.composed(found[place])
        before, error = error, float(rest.square().sum())
        if error >= before * (1 - 1e-6):
            break
    return found


def _most(tensor: Tensor) -> list[int]:
    return [min(matrix.shape) for matrix in tucker.unfoldings(tensor)]


def _checked(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    left, core, right = chain.factors(packed, "out", "core", "in")
    rows, b = (*core.shape, 0, 0)[:2]
    wide = len(right) if right.ndim else 0
    sizes = tuple(left.shape), tuple(core.shape), tuple(right.shape)
    wanted = (packed.shape[0], rows), (rows, b, *packed.shape[2:]), (wide, packed.shape[1])
    if sizes != wanted or not rows * b * wide or wide % b or rows % (wide // b):
        raise chain.misfit(packed, left, core, right)
    return left, core, right
