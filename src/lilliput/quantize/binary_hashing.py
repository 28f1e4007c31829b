"""Binary weights by hashing (BWNH): signs that keep a layer's outputs on data, not its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.core.stats import needed
from lilliput.quantize.binary import mean_magnitude
from lilliput.quantize.uniform import Uniform, filters, on_grid
from lilliput.solve.rounding import signs

NAME = "quantize/binary_hashing"


@dataclass(frozen=True)
class BinaryHashing(WeightMethod):
    """min |X^T w - a X^T b|^2 over a and b in {-1, 1}^n, for each filter: with H = X X^T and q = H w in turns.

    Hu, Wang and Cheng 2018 (arXiv 1802.02733). a = q.b / b.H b; then one sign after the other (discrete cyclic
    coordinate descent), b_j = sgn(a q_j - a^2 sum_{l != j} H_jl b_l), the old one if that is 0. From the signs and the
    mean magnitude of the weights on the error never rises; it ends in a local optimum. Where H is a multiple of the
    identity this is `quantize/binary`. While training goes on the signs stay and the magnitudes are trained.

    Attributes:
        sweeps: over all signs.

    >>> from lilliput.observe.collect import collect
    >>> data = [torch.tensor([[1.0, 1.0], [1.0, 0.9]])]
    >>> stats = collect(torch.nn.Linear(2, 1), {"weight": BinaryHashing.needs}, data)
    >>> BinaryHashing().pack(torch.tensor([[1.0, -0.2]]), stats["weight"]).parts["codes"]
    tensor([[ 1, -1]], dtype=torch.int8)
    """

    sweeps: int = 5

    into = ("scale",)
    training = "parts"
    trained = ("scale",)
    frozen = ("codes",)
    needs = frozenset({"gram"})
    searched = False

    def __post_init__(self) -> None:
        check_range(NAME, "sweeps", self.sweeps, 0, 1000)

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`: codes -1 and 1, one scale a filter.

        Raises:
            MethodError: if a weight isn't finite, or the stats are missing or those of another layer.
        """
        check_weight(weight, NAME)
        weight = weight.detach()
        per, rows = filters(weight, "row")
        matrix = needed(stats, "gram", NAME).matrix
        groups, columns = matrix.shape[0], matrix.shape[1]
        if weight.ndim < 2 or rows.shape[1] != columns or (groups and len(rows) % groups):
            raise MethodError(f"{NAME}: the Gram matrix {tuple(matrix.shape)} is of another layer")
        found = [fitted(own.double(), h.double(), self.sweeps) for own, h in zip(rows.chunk(groups), matrix)]
        scale = torch.cat([a for _, a in found]) if found else mean_magnitude(rows)
        codes = torch.cat([b for b, _ in found]) if found else signs(rows)
        return on_grid(weight, codes, scale.to(rows.dtype), per)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """The paper's few sweeps."""
        return (cls(),)


def fitted(rows: Tensor, gram: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """Returns signs (rows, n) and magnitudes (rows,), see `BinaryHashing`.

    Args:
        rows: weights, float64.
        gram: H, (n, n), float64; any positive multiple will do.
        sweeps: over all signs.
    """
    q, b, a = rows @ gram, signs(rows), mean_magnitude(rows)
    product = b @ gram
    for _ in range(sweeps):
        a = _magnitude(q, b, product, a)
        before = b.clone()
        for j in range(rows.shape[1]):
            others = product[:, j] - gram[j, j] * b[:, j]
            wanted = a * q[:, j] - a.square() * others
            moved = torch.where(wanted == 0, b[:, j], signs(wanted))
            product = product + (moved - b[:, j])[:, None] * gram[j]
            b[:, j] = moved
        if torch.equal(b, before):
            break
    a = _magnitude(q, b, product, a)
    return b * torch.where(a < 0, -1.0, 1.0)[:, None], a.abs()


def _magnitude(q: Tensor, b: Tensor, product: Tensor, before: Tensor) -> Tensor:
    power = (product * b).sum(1)
    return torch.where(power > 0, (q * b).sum(1) / torch.where(power > 0, power, 1), before)
