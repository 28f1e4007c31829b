"""Truncated singular value decomposition of a weight seen as a matrix: two thin factors in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take

NAME = "factorize/svd"


@dataclass(frozen=True)
class Svd(WeightMethod):
    """W (m x n) ~ U V with U (m x r) and V (r x n), the best approximation of rank r (Eckart and Young 1936).

    A convolution (out, in, kh, kw) is the matrix out x (in kh kw). The singular values are split evenly,
    U = U_r sqrt(S_r) and V = sqrt(S_r) V_r^T, which balances the gradients. The squared error is the sum of the
    squared singular values left out. The factors hold r (m + n) numbers, so that r < m n / (m + n) pays.

    Attributes:
        rank: number of singular values kept; 0 to go by `energy`.
        energy: keep the fewest singular values with sum s_i^2 >= energy * sum of all, 0 < energy <= 1.
        force: factorize even where the factors hold more numbers than the weight.

    >>> packed = Svd(rank=1).pack(torch.ones(4, 5))
    >>> packed.parts["u"].shape, bool(torch.allclose(Svd.unpack(packed), torch.ones(4, 5)))
    (torch.Size([4, 1]), True)
    """

    rank: int = 0
    energy: float = 0.95
    force: bool = False

    into = ("u", "v")
    training = "parts"
    trained = ("u", "v")
    exact = True

    def __post_init__(self) -> None:
        check_range(NAME, "rank", self.rank, 0, 2**31)
        check_range(NAME, "energy", self.energy, 1e-6, 1)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `u` (m x r) and `v` (r x n), in the weight's dtype.

        Raises:
            NotWorthwhile: if the factors would hold more numbers than the weight.
            MethodError: if the weight has fewer than two axes, or isn't finite.
        """
        check_weight(weight, NAME)
        if weight.ndim < 2:
            raise MethodError(f"{NAME}: needs a weight of two or more axes, not of shape {tuple(weight.shape)}")
        matrix = weight.reshape(len(weight), -1) if weight.numel() else weight.new_zeros(len(weight), 0)
        precise = matrix.to(
            torch.float64 if matrix.numel() <= 2**22 else torch.promote_types(matrix.dtype, torch.float32)
        )
        left, values, right = torch.linalg.svd(precise, full_matrices=False)
        rank = min(self.rank, len(values)) if self.rank else rank_for_energy(values, self.energy)
        rows, columns = matrix.shape
        if rank * (rows + columns) > weight.numel() and not self.force:
            raise NotWorthwhile(
                f"{NAME}: rank {rank} of a {rows} x {columns} matrix holds {rank * (rows + columns)} numbers, "
                f"the weight {weight.numel()}"
            )
        root = values[:rank].sqrt()
        parts = {
            "u": (left[:, :rank] * root).to(weight.dtype),
            "v": (root[:, None] * right[:rank]).to(weight.dtype),
        }
        return Packed(NAME, tuple(weight.shape), weight.dtype, {k: v.contiguous() for k, v in parts.items()})

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the product of the factors in the weight's shape."""
        if len(packed.shape) < 2:
            raise MethodError(f"{NAME}: shape {packed.shape} is no matrix")
        rows = packed.shape[0]
        columns = torch.Size(packed.shape[1:]).numel() if rows else 0
        u, v = packed.tensor("u", integer=False), packed.tensor("v", integer=False)
        if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[0] or (u.shape[0], v.shape[1]) != (rows, columns):
            raise MethodError(f"{NAME}: factors {tuple(u.shape)} and {tuple(v.shape)} don't make {packed.shape}")
        if not u.dtype == v.dtype == packed.dtype or not (u.shape[1] or rows * columns == 0):
            # Rank 0 would make a weight of any size out of nothing; wider factors, one wider than the file declared.
            raise MethodError(
                f"{NAME}: factors {u.dtype} {tuple(u.shape)} and {v.dtype} {tuple(v.shape)} of {packed.dtype}"
            )
        return (u @ v).reshape(packed.shape).to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes rows of `u`, or those columns of `v` that belong to the indices which stay."""
        shape = cut_shape(packed, axis, kept)
        if axis == 0:
            return replace(packed.with_parts(u=take(packed.parts["u"], 0, kept)), shape=shape)
        numel = torch.Size(packed.shape[1:]).numel()
        columns = torch.arange(numel, device=kept.device).reshape(packed.shape[1:])
        wanted = columns.index_select(axis - 1, kept).flatten()
        return replace(packed.with_parts(v=take(packed.parts["v"], 1, wanted)), shape=shape)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """Energies from 80 % to 99 %."""
        return tuple(cls(energy=energy) for energy in (0.8, 0.9, 0.95, 0.99))


def rank_for_energy(values: Tensor, energy: float) -> int:
    """Returns the smallest k >= 1 with sum_{i<=k} s_i^2 >= energy * sum s_i^2.

    Args:
        values: singular values in descending order.
        energy: 0 < energy <= 1.
    """
    squares = values.double().square()
    total = float(squares.sum())
    if not total:
        return min(1, len(values))
    reached = squares.cumsum(0) >= energy * total * (1 - 1e-12)
    return int(reached.to(torch.int8).argmax()) + 1
