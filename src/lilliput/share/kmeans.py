"""Weight sharing by k-means: each weight is one of a few shared values, which training goes on to tune."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take, unpack
from lilliput.core.solver import solvers_of
from lilliput.solve import kmeans1d
from lilliput.solve.interval_partition import LARGEST_K
from lilliput.solve.levels import CodebookLevels

NAME = "share/kmeans"
# Weights that are looked at together, where there are many.
PIECE = 1 << 16


@dataclass(frozen=True)
class KMeans(WeightMethod):
    """Shares k values among the weights of a tensor: min over c of sum_i min_j (w_i - c_j)^2.

    Deep Compression (Han, Mao and Dally 2016, arXiv 1510.00149). Exact zeros are left out and stay exactly zero: where
    a weight has any, code 0 means zero and the k values are for the others, so that a pruned weight keeps its dense
    shape and zero is an ordinary symbol to the entropy coder. While training goes on the codes stay and the shared
    values are trained; the gradient of one is the sum over its weights, dL/dc_j = sum_{i: code_i = j} dL/dw_i.

    The paper starts Lloyd's iteration in one of three ways, which end in a median 16 to 175 % more squared error than
    the optimum on pruned weights with 32 values; the optimum costs no more time (see `solve.kmeans1d`).

    Attributes:
        bits: k = 2^bits shared values, 1 to 8.
        k: the number of shared values if it is no power of two, 1 to 1024; 0 means 2^bits.
        init: `"optimal"`, or how Lloyd's iteration starts: `"forgy"` (k of the weights, at random), `"density"` (evenly
            spaced in the cumulative distribution) or `"linear"` (evenly spaced from min to max).
        seed: of `forgy`.
        solver: which value each weight gets: the nearest, or what a rounding solver says, which sees the data
            (`"gptq"`, `"adaround"`).

    >>> packed = KMeans(bits=1).pack(torch.tensor([[1.0, 0.0, 1.5], [-2.0, 0.0, 0.0]]))
    >>> packed.parts["codes"].tolist(), packed.parts["codebook"].tolist()
    ([[2, 0, 2], [1, 0, 0]], [-2.0, 1.25])
    """

    bits: int = 5
    k: int = 0
    init: Literal["optimal", "forgy", "density", "linear"] = "optimal"
    seed: int = 0
    solver: str = ""

    into = ("codebook",)
    keeps_zeros = True
    training = "parts"
    trained = ("codebook",)
    frozen = ("codes",)
    exact = True

    def __post_init__(self) -> None:
        check_range(NAME, "bits", self.bits, 1, 8)
        check_range(NAME, "k", self.k, 0, LARGEST_K)
        check_range(NAME, "seed", self.seed, 0, 2**63, open_high=True)
        if self.init not in {"optimal", "forgy", "density", "linear"}:
            raise MethodError(f"{NAME}: no init '{self.init}'; there are optimal, forgy, density, linear")
        if solvers_of(self.solver).range is not None:
            raise MethodError(f"{NAME}: '{self.solver}' finds ranges, which a codebook hasn't; take gptq or adaround")
        if self.solver:
            # What is needed depends on a setting, so that this instance differs from its class.
            object.__setattr__(self, "needs", solvers_of(self.solver).needs)

    @property
    def clusters(self) -> int:
        """The number of shared values, zero not counted."""
        return self.k or 2**self.bits

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to `codes` (dense; uint8, or int16 beyond 256 symbols) and `codebook` (ascending, at least float32).

        Args:
            weight: any shape, any floating-point dtype.
            stats: what the solver needs.
            prior: the weight packed before: its codes and (trained) codebook stay, unless it has more values than
                this setting asks for; weights that have become zero since get the code of zero.

        Raises:
            MethodError: if a weight isn't finite, or the solver lacks its data.
        """
        weight = weight.detach()
        check_weight(weight, NAME)
        if prior is not None and prior.shape == tuple(weight.shape):
            codebook = unpack(prior.parts["codebook"]).detach()
            if len(codebook) <= self.clusters:
                return _kept(weight, prior, codebook)
        flat = weight.reshape(-1)
        zero = not bool((flat != 0).all())
        # By pieces: a mask picks by indices of eight bytes, which for a large weight are many.
        values = torch.cat([piece[piece != 0] for piece in torch.split(flat, PIECE)]) if zero else flat
        codebook = self._codebook(values)
        if self.solver and values.numel():
            values = self._placed(weight, codebook, stats)
        codes = kmeans1d.assign(values, codebook).to(_code_dtype(len(codebook) + zero))
        if zero:
            del values  # of a large weight there is memory enough in use by now
            codes = _in_places(flat != 0, codes.add_(1))
        return _packed(weight, codes, codebook.to(flat.device), zero)

    def _placed(self, weight: Tensor, codebook: Tensor, stats: object) -> Tensor:
        """The shared values that the solver chooses for the weights that aren't zero."""
        solver = solvers_of(self.solver).rounding
        assert solver is not None
        size = 2.0 ** float(torch.frexp(weight.abs().max().double()).exponent)
        work, table = ((part.double() / size).to(codebook.dtype) for part in (weight, codebook))
        placed = solver.settle(work.reshape(weight.shape[0] if weight.ndim else 1, -1), CodebookLevels(table), stats)
        return codebook[kmeans1d.assign(placed.flatten(), table).long()][(work != 0).flatten()]

    def _codebook(self, values: Tensor) -> Tensor:
        """The shared values, ascending, as the weight's dtype can hold them."""
        if not values.numel():
            centroids = torch.empty(0, dtype=torch.float64)
        elif self.init == "optimal":
            centroids = kmeans1d.optimal(values, self.clusters)
        else:
            generator = torch.Generator().manual_seed(self.seed)
            start = kmeans1d.initial(values, self.clusters, self.init, generator)
            centroids = kmeans1d.lloyd(values, start)
        held: Tensor = torch.unique_consecutive(centroids.to(values.dtype))
        return held.to(torch.promote_types(values.dtype, torch.float32))

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Looks the codes up in the codebook; differentiable in the codebook."""
        codes = packed.tensor("codes", shape=packed.shape, integer=True)
        codebook = packed.tensor("codebook", integer=False)
        zero = packed.settings.get("zero")
        if type(zero) is not bool or codebook.ndim != 1 or codes.dtype not in {torch.uint8, torch.int16}:
            raise MethodError(f"{NAME}: codes of {codes.dtype}, codebook {tuple(codebook.shape)}, zero = {zero}")
        table = torch.cat([codebook.new_zeros(1), codebook]) if zero else codebook
        if codes.numel():
            low, high = (int(end) for end in codes.aminmax())
            if not 0 <= low <= high < len(table):
                raise MethodError(f"{NAME}: codes {low} .. {high} point outside the {len(table)} shared values")
        # In the codebook's dtype until after the look-up, so that half-precision gradients are summed in float32.
        return _looked_up(table, codes.reshape(-1)).reshape(packed.shape).to(packed.dtype)

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes from the codes; the shared values stay."""
        cut = packed.with_parts(codes=take(packed.parts["codes"], axis, kept))
        return replace(cut, shape=cut_shape(packed, axis, kept))

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """4 to 256 shared values."""
        return tuple(cls(bits=bits) for bits in range(2, 9))


def _code_dtype(symbols: int) -> torch.dtype:
    return torch.uint8 if symbols <= 256 else torch.int16


def _in_places(live: Tensor, codes: Tensor) -> Tensor:
    """The codes in order where `live` is set, 0 elsewhere; bytes take the memory of `live`, which is given up."""
    if codes.dtype != torch.uint8:
        return torch.zeros(live.shape, dtype=codes.dtype, device=live.device).masked_scatter_(live, codes)
    places, done = live.view(torch.uint8), 0
    for piece in torch.split(places, PIECE):
        here = piece.bool()
        piece.masked_scatter_(here, codes[done:])
        done += int(torch.count_nonzero(here))
    return places


def _looked_up(table: Tensor, codes: Tensor) -> Tensor:
    """`table[codes]`; where no gradient is wanted, without indices of four bytes for all of them."""
    if table.requires_grad or len(codes) <= PIECE:
        return table.index_select(0, codes.to(torch.int32))
    weight = table.new_empty(len(codes))
    for values, piece in zip(torch.split(weight, PIECE), torch.split(codes, PIECE), strict=True):
        torch.index_select(table, 0, piece.to(torch.int32), out=values)
    return weight


def _kept(weight: Tensor, prior: Packed, codebook: Tensor) -> Packed:
    """The codes of an earlier packing with its shared values as they are now, zeros of the weight added."""
    codes, zero = prior.tensor("codes"), bool(prior.settings["zero"])
    gone = weight == 0
    if not zero and bool(gone.any()):
        codes, zero = codes.to(_code_dtype(len(codebook) + 1)) + 1, True
    return _packed(weight, codes.masked_fill(gone, 0) if zero else codes, codebook, zero)


def _packed(weight: Tensor, codes: Tensor, codebook: Tensor, zero: bool) -> Packed:
    """Codes in which, with `zero`, 0 means zero and j + 1 the shared value j; without it, j means j."""
    parts = {"codes": codes.reshape(weight.shape), "codebook": codebook}
    return Packed(NAME, tuple(weight.shape), weight.dtype, parts, {"zero": zero})
