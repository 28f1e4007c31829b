"""Matrices of low displacement rank, such as Toeplitz matrices and their inverses: multiplied by FFT."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.factorize.rank import check_smaller, precise

NAME = "factorize/toeplitz"


@dataclass(frozen=True)
class Toeplitz(WeightMethod):
    """M = 1/2 sum_i Z_1(g_i) Z_-1(J h_i) with r pairs of vectors: Toeplitz-like matrices.

    Sindhwani, Sainath and Kumar 2015 (arXiv 1510.01722). Z_f shifts down, with f in the corner; Z_f(v) =
    [v, Z_f v, Z_f^2 v, ...]; J reverses. It is the matrix with Z_1 M - M Z_-1 = sum_i g_i h_i^T. Toeplitz matrices and
    their inverses need r = 2, matrices of rank k at most 2 k, any matrix r = n. A multiplication takes O(r n log n).

    A weight is cut into square tiles along its longer side, the last filled up with zeros; n is the shorter side. It
    holds 2 r n numbers a tile. A trained weight is projected: truncated SVD of each tile's displacement, then the best
    multiple. That can lose much; train it afterwards.

    Attributes:
        rank: r; 0 to go by `ratio`.
        ratio: the part of the numbers to be kept, 0 < ratio <= 1.
        force: do it even where the vectors hold more numbers than the weight.

    >>> toeplitz = torch.tensor([[1.0, 2, 3], [4, 1, 2], [5, 4, 1]])
    >>> packed = Toeplitz(rank=2, force=True).pack(toeplitz)
    >>> bool(torch.allclose(Toeplitz.unpack(packed), toeplitz, atol=1e-5))
    True
    """

    rank: int = 0
    ratio: float = 0.25
    force: bool = False

    into = ("g", "h")
    training = "parts"
    trained = ("g", "h")

    def __post_init__(self) -> None:
        check_range(NAME, "rank", self.rank, 0, 2**31)
        check_range(NAME, "ratio", self.ratio, 1e-6, 1)

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `g` and `h`, each (tiles, r, n), in the weight's dtype.

        Raises:
            NotWorthwhile: if the vectors would hold more numbers than the weight.
            MethodError: if the weight has fewer than two axes, or isn't finite.
        """
        check_weight(weight, NAME)
        if weight.ndim < 2 or not weight.numel():
            raise MethodError(f"{NAME}: needs a weight of two or more axes, not of shape {tuple(weight.shape)}")
        tiles = _tiles(precise(weight).flatten(1))
        count, n, _ = tiles.shape
        rank = min(self.rank or max(1, math.floor(self.ratio * weight.numel() / (2 * n * count))), n)
        what = f"displacement rank {rank} of {count} tiles of {n} x {n}"
        check_smaller(NAME, 2 * rank * n * count, weight, what, self.force)
        scale = tiles.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(tiles.dtype).tiny)
        left, values, right = torch.linalg.svd(displacement(tiles / scale), full_matrices=False)
        root = values[:, :rank].sqrt()[..., None]
        g, h = left[:, :, :rank].transpose(1, 2) * root, right[:, :rank] * root
        made = matrices(g, h)
        fit = ((made * tiles / scale).sum((1, 2)) / made.square().sum((1, 2)).clamp(min=1e-300))[:, None, None]
        # The rounding of vectors split evenly is least; the sign goes with one of them.
        share = (fit.abs() * scale).sqrt()
        parts = {"g": (g * share * fit.sign()).to(weight.dtype), "h": (h * share).to(weight.dtype)}
        return Packed(NAME, tuple(weight.shape), weight.dtype, {k: v.contiguous() for k, v in parts.items()})

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Returns the matrices made of the vectors in the weight's shape."""
        g, h = _checked(packed)
        rows, columns = packed.shape[0], math.prod(packed.shape[1:])
        wide = torch.promote_types(g.dtype, torch.float32)
        tiles = matrices(g.to(wide), h.to(wide))
        whole = tiles.flatten(0, 1)[:rows] if rows >= columns else tiles.transpose(0, 1).flatten(1)[:, :columns]
        return whole.reshape(packed.shape).to(packed.dtype)

    @staticmethod
    def multiply(packed: Packed, inputs: Tensor) -> Tensor:
        """Returns inputs W^T by FFT, in O(r n log n) a tile, without making W.

        Args:
            packed: by this method, its parts tensors.
            inputs: (..., columns).
        """
        g, h = _checked(packed)
        rows, columns = packed.shape[0], math.prod(packed.shape[1:])
        count, _, n = g.shape
        flat = inputs.reshape(-1, columns)
        if rows >= columns:
            spread = flat[:, None].expand(-1, count, -1)
            return _product(g, h, spread).reshape(*inputs.shape[:-1], -1)[..., :rows]
        padded = torch.nn.functional.pad(flat, (0, count * n - columns)).reshape(-1, count, n)
        return _product(g, h, padded).sum(1).reshape(*inputs.shape[:-1], -1)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """A quarter, half and all of the numbers."""
        return tuple(cls(ratio=ratio) for ratio in (0.25, 0.5, 1.0))


def displacement(tiles: Tensor) -> Tensor:
    """Returns Z_1 M - M Z_-1 of square matrices (..., n, n).

    >>> int(torch.linalg.matrix_rank(displacement(torch.eye(5))))
    1
    """
    down = tiles.roll(1, -2)
    left = torch.cat([tiles[..., 1:], -tiles[..., :1]], -1)
    return down - left


def matrices(g: Tensor, h: Tensor) -> Tensor:
    """Returns 1/2 sum_i Z_1(g_i) Z_-1(J h_i): (tiles, n, n) from (tiles, r, n) twice."""
    n = g.shape[-1]
    places = torch.arange(n, device=g.device)
    apart = places[:, None] - places
    sign = torch.where(apart < 0, -1.0, 1.0).to(h.dtype)
    total = torch.zeros(len(g), n // 2 + 1, n, dtype=torch.promote_types(g.dtype, torch.complex64), device=g.device)
    for one, other in zip(g.unbind(1), h.flip(2).unbind(1)):
        skew = other[:, apart % n] * sign
        total = total + torch.fft.rfft(one)[..., None] * torch.fft.rfft(skew, dim=1)
    made: Tensor = torch.fft.irfft(total, n, dim=1)
    return made / 2


def _product(g: Tensor, h: Tensor, x: Tensor) -> Tensor:
    """Returns M x for x (batch, tiles, n) by FFT; see the class for M."""
    n = g.shape[-1]
    wide = torch.promote_types(g.dtype, torch.float32)
    angle = torch.arange(n, device=g.device, dtype=wide) * (math.pi / n)
    turn = torch.polar(torch.ones_like(angle), angle)
    turned = torch.fft.fft(turn * x[:, :, None].to(wide))
    skew = torch.fft.ifft(torch.fft.fft(turn * h.flip(2).to(wide)) * turned) * turn.conj()
    circular = torch.fft.rfft(skew.real) * torch.fft.rfft(g.to(wide))
    product: Tensor = torch.fft.irfft(circular.sum(2), n)
    return (product / 2).to(x.dtype)


def _tiles(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    n = min(rows, columns)
    count = -(-max(rows, columns) // n)
    if rows >= columns:
        return torch.nn.functional.pad(matrix, (0, 0, 0, count * n - rows)).reshape(count, n, n)
    padded = torch.nn.functional.pad(matrix, (0, count * n - columns))
    return padded.reshape(n, count, n).transpose(0, 1).contiguous()


def _checked(packed: Packed) -> tuple[Tensor, Tensor]:
    if len(packed.shape) < 2 or 0 in packed.shape:
        raise MethodError(f"{NAME}: shape {packed.shape} is no matrix's")
    sides = packed.shape[0], math.prod(packed.shape[1:])
    n, count = min(sides), -(-max(sides) // min(sides))
    g, h = packed.tensor("g", integer=False), packed.tensor("h", integer=False)
    rank = g.shape[1] if g.ndim == 3 else 0
    if tuple(g.shape) != (count, rank, n) or g.shape != h.shape or not 1 <= rank <= n:
        raise MethodError(f"{NAME}: vectors {tuple(g.shape)} and {tuple(h.shape)} don't make {packed.shape}")
    if not g.dtype == h.dtype == packed.dtype:
        raise MethodError(f"{NAME}: vectors {g.dtype} and {h.dtype} of {packed.dtype}")
    return g, h
