"""Binary weights: a sign a weight and a magnitude a filter (BWN)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lilliput.core.checks import check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.uniform import Uniform, filters, on_grid
from lilliput.solve.rounding import signs

NAME = "quantize/binary"


@dataclass(frozen=True)
class Binary(WeightMethod):
    """w ~ a sign(w) with a = mean|w| of each filter: the least-squares optimum over a and all signs; sign(0) = +1.

    Rastegari et al. 2016 (arXiv 1603.05279): |w - a b|^2 = a^2 n - 2 a w.b + |w|^2 is least for b = sign(w) and
    a = |w|_1 / n, and is then |w|^2 - n a^2. Gradient of the latent weight, g being that of the value:

    * `paper`: g_j (1/n + a 1[|w_j| < 1]), which keeps the diagonal of the chain rule;
    * `exact`: sign(w_j)/n sum_i g_i sign(w_i) + a g_j 1[|w_j| < 1];
    * `straight`: g_j.

    Attributes:
        per: one magnitude per tensor or per row (first axis: a filter).
        estimator: of the gradient, see above.

    >>> import torch
    >>> packed = Binary().pack(torch.tensor([[0.9, -0.3], [0.0, 0.2]]))
    >>> packed.parts["codes"].tolist(), [round(a, 4) for a in packed.parts["scale"].tolist()]
    ([[1, -1], [1, 1]], [0.6, 0.1])
    """

    per: Literal["tensor", "row"] = "row"
    estimator: Literal["paper", "exact", "straight"] = "paper"

    into = ("scale",)
    exact = True
    searched = False

    def __post_init__(self) -> None:
        if self.per not in {"tensor", "row"}:
            raise MethodError(f"{NAME}: no per = '{self.per}'; there are tensor, row")
        if self.estimator not in {"paper", "exact", "straight"}:
            raise MethodError(f"{NAME}: no estimator '{self.estimator}'; there are paper, exact, straight")

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`: codes -1 and 1, one scale a filter.

        Raises:
            MethodError: if a weight isn't finite.
        """
        check_weight(weight, NAME)
        per, rows = filters(weight, self.per)
        return on_grid(weight, signs(rows), mean_magnitude(rows), per)

    def gradient(self, weight: Tensor, packed: Packed, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the gradient by the estimator."""
        return estimated(weight, packed, grad, self.estimator), {}

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """One magnitude for all, or one a filter."""
        return cls(per="tensor"), cls()


def mean_magnitude(rows: Tensor) -> Tensor:
    """Returns mean|w| of each row, summed in float64; 0 for rows without weights.

    Args:
        rows: a matrix.
    """
    return (rows.abs().double().sum(1) / max(rows.shape[1], 1)).to(rows.dtype)


def estimated(weight: Tensor, packed: Packed, grad: Tensor, estimator: str) -> Tensor:
    """Returns the latent weight's gradient, see `Binary`; `packed` is in the form of `quantize/uniform`."""
    if estimator == "straight":
        return grad
    scale = packed.tensor("scale")[:, None]
    rows = weight.reshape(len(scale), -1) if weight.numel() else weight.reshape(len(scale), 0)
    own = grad.reshape(rows.shape)
    n = max(rows.shape[1], 1)
    kept = scale * own * (rows.abs() < 1)
    if estimator == "exact":
        sign = signs(rows)
        return (sign / n * (own * sign).sum(1, keepdim=True) + kept).reshape(grad.shape).to(grad.dtype)
    return (own / n + kept).reshape(grad.shape).to(grad.dtype)
