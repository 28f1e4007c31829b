"""Fast products of matrices under im2col: Strassen's seven products for eight, or Winograd's with fewer additions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lilliput.convolution.contract import Cost, with_bias
from lilliput.convolution.im2col import Im2col, lower
from lilliput.core.errors import MethodError
from lilliput.hardware.layer import Layer

Variant = Literal["strassen", "winograd"]


@dataclass(frozen=True)
class Strassen:
    """The lowered product of im2col by halves: 7/8 of the multiplications for each level (Strassen 1969).

    18 additions of quarters a level, or Winograd's 15; odd rows and columns are peeled off and multiplied plainly. As
    Cong & Xiao (2014) use it for convolutions. The error grows with the levels, beside the largest output.

    Attributes:
        levels: at most so many halvings.
        cutoff: a product with an edge shorter than this is left to the plain one.
        variant: `"strassen"` or `"winograd"`.

    >>> Strassen(levels=1, cutoff=2).cost(Layer(64, 64, size=(8, 8))).multiplications == 7 * 32**3
    True
    """

    levels: int = 1
    cutoff: int = 64
    variant: Variant = "winograd"

    def __post_init__(self) -> None:
        if self.levels < 0 or self.cutoff < 2:
            raise MethodError(
                f"convolution/strassen: levels must be 0 or more and cutoff 2 or more, not {self.levels}, {self.cutoff}"
            )
        if self.variant not in ("strassen", "winograd"):
            raise MethodError(f"convolution/strassen: variant must be strassen or winograd, not '{self.variant}'")

    def unsuited(self, layer: Layer) -> str | None:
        """It computes every layer."""
        return None

    def cost(self, layer: Layer, element: int = 4) -> Cost:
        """Returns the products and sums of the recursion, and im2col's workspace with three quarters for each level."""
        lowered = Im2col().cost(layer, element)
        sizes = layer.filters // layer.groups, layer.depth, layer.output_size[0] * layer.output_size[1]
        count = layer.batch * layer.groups
        times, plus, held = counts(*sizes, self)
        return Cost(count * times, count * plus, lowered.workspace + held * element, lowered.prepared)

    def prepare(self, weight: Tensor, layer: Layer) -> Tensor:
        """Returns the weight as matrices, (groups, filters / groups, channels / groups R S)."""
        return weight.reshape(layer.groups, layer.filters // layer.groups, -1).contiguous()

    def run(self, x: Tensor, prepared: Tensor, layer: Layer, bias: Tensor | None = None) -> Tensor:
        """Returns the convolution; see `contract.Algorithm`."""
        y = x.new_empty(layer.batch, layer.groups, layer.filters // layer.groups, *layer.output_size)
        for image in range(layer.batch):
            columns = lower(x[image][None], layer)[0]
            for group in range(layer.groups):
                multiply(prepared[group], columns[group], self, out=y[image, group].flatten(1))
        return with_bias(y.reshape(layer.batch, layer.filters, *layer.output_size), bias)

    @classmethod
    def choices(cls) -> tuple[Strassen, ...]:
        """One and two levels of Winograd's variant, one of Strassen's own."""
        return (cls(1), cls(2), cls(1, variant="strassen"))


def multiply(a: Tensor, b: Tensor, how: Strassen, out: Tensor | None = None) -> Tensor:
    """Returns a b by the recursion; exact for integers.

    Args:
        a: (m, k), any numbers.
        b: (k, n), of the same dtype.
        how: levels, cut-off and variant.
        out: (m, n), where the result goes; rows may be apart.

    >>> a, b = torch.arange(16).reshape(4, 4), torch.arange(16, 32).reshape(4, 4)
    >>> torch.equal(multiply(a, b, Strassen(2, 2)), a @ b)
    True
    """
    out = a.new_empty(a.shape[0], b.shape[1]) if out is None else out
    _into(out, a, b, how, how.levels)
    return out


def counts(m: int, k: int, n: int, how: Strassen) -> tuple[int, int, int]:
    """Returns multiplications, additions and numbers of workspace of a product of (m, k) and (k, n).

    One level of 64: 466,944 operations with 15 additions and 470,016 with 18, instead of 520,192.

    >>> [sum(counts(64, 64, 64, Strassen(levels, 2, kind))[:2]) for levels, kind in ((0, "winograd"), (1, "winograd"))]
    [520192, 466944]
    """
    return _counted(m, k, n, how, how.levels)


def _halves(m: int, k: int, n: int, how: Strassen, levels: int) -> bool:
    return levels > 0 and min(m, k, n) >= how.cutoff and min(m, k, n) >= 2


def _counted(m: int, k: int, n: int, how: Strassen, levels: int) -> tuple[int, int, int]:
    if not _halves(m, k, n, how, levels):
        return m * k * n, m * n * (k - 1), 0
    (p, q, r), odd = (m // 2, k // 2, n // 2), k % 2
    times, plus, held = _counted(p, q, r, how, levels - 1)
    left, right, out = (4, 4, 7) if how.variant == "winograd" else (5, 5, 8)
    times, plus = 7 * times, 7 * plus + left * p * q + right * q * r + out * p * r
    held += p * q + q * r + p * r
    # What is peeled off: the last column of a with the last row of b, the last column and the last row of the result.
    times, plus = times + odd * 4 * p * r, plus + odd * 4 * p * r
    for rows, columns in ((2 * p, n % 2), (m % 2, n)):
        times, plus = times + rows * columns * k, plus + rows * columns * (k - 1)
    return times, plus, held


def _into(c: Tensor, a: Tensor, b: Tensor, how: Strassen, levels: int) -> None:
    (m, k), n = a.shape, b.shape[1]
    if not _halves(m, k, n, how, levels):
        torch.matmul(a, b, out=c)
        return
    p, q, r = m // 2, k // 2, n // 2
    step = _winograd if how.variant == "winograd" else _strassen
    step(
        [c[i * p : (i + 1) * p, j * r : (j + 1) * r] for i in (0, 1) for j in (0, 1)],
        [a[i * p : (i + 1) * p, j * q : (j + 1) * q] for i in (0, 1) for j in (0, 1)],
        [b[i * q : (i + 1) * q, j * r : (j + 1) * r] for i in (0, 1) for j in (0, 1)],
        (how, levels - 1),
    )
    if k % 2:
        # An outer product, without a matrix of its own.
        c[: 2 * p, : 2 * r].addcmul_(a[: 2 * p, -1:], b[-1:, : 2 * r])
    if n % 2:
        c[: 2 * p, -1:] = a[: 2 * p] @ b[:, -1:]
    if m % 2:
        c[-1:] = a[-1:] @ b


def _strassen(c: list[Tensor], a: list[Tensor], b: list[Tensor], rest: tuple[Strassen, int]) -> None:
    """Seven products and 18 sums, with one left and one right factor and one product held at a time."""
    (a11, a12, a21, a22), (b11, b12, b21, b22), (c11, c12, c21, c22) = a, b, c
    x, y, z = torch.empty_like(a11), torch.empty_like(b11), torch.empty_like(c11)
    _into(c11, torch.add(a11, a22, out=x), torch.add(b11, b22, out=y), *rest)
    c22.copy_(c11)
    _into(c21, torch.add(a21, a22, out=x), b11, *rest)
    c22 -= c21
    _into(c12, a11, torch.sub(b12, b22, out=y), *rest)
    c22 += c12
    _into(z, a22, torch.sub(b21, b11, out=y), *rest)
    c11 += z
    c21 += z
    _into(z, torch.add(a11, a12, out=x), b22, *rest)
    c11 -= z
    c12 += z
    _into(z, torch.sub(a21, a11, out=x), torch.add(b11, b12, out=y), *rest)
    c22 += z
    _into(z, torch.sub(a12, a22, out=x), torch.add(b21, b22, out=y), *rest)
    c11 += z


def _winograd(c: list[Tensor], a: list[Tensor], b: list[Tensor], rest: tuple[Strassen, int]) -> None:
    """Seven products and 15 sums (Winograd 1971), the same workspace."""
    (a11, a12, a21, a22), (b11, b12, b21, b22), (c11, c12, c21, c22) = a, b, c
    x, y, z = torch.empty_like(a11), torch.empty_like(b11), torch.empty_like(c11)
    _into(c21, torch.sub(a11, a21, out=x), torch.sub(b22, b12, out=y), *rest)  # P7 = S3 T3
    torch.add(a21, a22, out=x)
    torch.sub(b12, b11, out=y)
    _into(c22, x, y, *rest)  # P5 = S1 T1
    x -= a11
    torch.sub(b22, y, out=y)
    _into(c12, x, y, *rest)  # P6 = S2 T2
    torch.sub(a12, x, out=x)
    _into(c11, x, b22, *rest)  # P3 = S4 B22
    _into(z, a11, b11, *rest)  # P1
    c12 += z
    c21 += c12
    c12 += c22
    c22 += c21
    c12 += c11
    y -= b21
    _into(c11, a22, y, *rest)  # P4 = A22 T4
    c21 -= c11
    _into(c11, a12, b21, *rest)  # P2
    c11 += z
