"""Product quantization: runs of input channels take their weights from a codebook of short vectors of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.checks import check_range, check_weight
from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, cut_shape, take, unpack
from lilliput.core.stats import needed
from lilliput.solve.sub_spaces import SubSpaces, decoded
from lilliput.solve.vector_kmeans import clustered

NAME = "share/product"


@dataclass(frozen=True)
class Product(WeightMethod):
    """W[t, m, p] ~ D_m[k(t, m, p)]: output t, run m of `width` input channels, place p of the kernel.

    Quantized CNN (Wu, Leng, Wang, Hu and Cheng 2016, arXiv 1512.06473). Codebooks start by k-means in each sub-space;
    then, with data, the error of the layer's responses is corrected: codebooks by least squares and codes by trying
    all, in turns, each the exact optimum of its block, on sum_n |(W - D B) x_n|^2 (`solve.sub_spaces`). A convolution
    has one codebook for a run of channels at all places of the kernel and in all its groups. While training goes on the
    codes stay and the codebooks are trained. Inputs times codewords are looked up by `multiply` and `convolve`: Cs K
    multiplications in place of Cs Ct.

    Attributes:
        width: channels in a run; 0 for the paper's 8 in convolutions and 3 elsewhere. The last may be narrower.
        k: codewords of a run; 0 for the paper's 128 in convolutions and 32 elsewhere.
        correct: correct the error of the responses, which needs data.
        rounds: of the correction, at most.
        damp: what is added to the diagonal of X X^T, in parts of its mean: how far other inputs are thought of.
        force: pack even where codes and codebooks take more bits than the weight.
        seed: of k-means' start.

    >>> w = torch.tensor([[1.0, 2.0, 0.5], [1.0, 2.0, 0.0], [3.0, 4.0, 0.0]])
    >>> packed = Product(width=2, k=2, correct=False, force=True).pack(w)
    >>> packed.parts["codes"].shape, torch.equal(unpack(packed), w)
    (torch.Size([3, 2]), True)
    """

    width: int = 0
    k: int = 0
    correct: bool = True
    rounds: int = 10
    damp: float = 0.01
    force: bool = False
    seed: int = 0

    into = ("codebook",)
    training = "parts"
    trained = ("codebook",)
    frozen = ("codes",)
    needs = frozenset({"gram"})

    def __post_init__(self) -> None:
        check_range(NAME, "width", self.width, 0, 1 << 16)
        check_range(NAME, "k", self.k, 0, 1 << 12)
        check_range(NAME, "rounds", self.rounds, 0, 1000)
        check_range(NAME, "damp", self.damp, 0, 1e6)
        check_range(NAME, "seed", self.seed, 0, 2**63, open_high=True)

    def pack(self, weight: Tensor, stats: Any = None, prior: Packed | None = None) -> Packed:
        """Packs to `codes` (outputs, runs, *window; uint8, or int16 beyond 256) and `codebook` (runs, k, width).

        Args:
            weight: (outputs, inputs, *window).
            stats: `"gram"` of the layer; not asked for without `correct`.
            prior: the weight packed before in runs of this width: its codes and (trained) codebook stay.

        Raises:
            NotWorthwhile: if codes and codebooks take more bits than the weight.
            MethodError: if the weight has fewer than two axes or isn't finite, or the stats are another layer's.
        """
        check_weight(weight, NAME)
        if weight.ndim < 2 or not weight.numel():
            raise MethodError(f"{NAME}: needs a weight of two or more axes, not of shape {tuple(weight.shape)}")
        weight = weight.detach()
        outputs, channels, places = len(weight), weight.shape[1], weight[0, 0].numel()
        width = min(self.width or (8 if weight.ndim > 2 else 3), channels)
        runs, k = -(-channels // width), min(self.k or (128 if weight.ndim > 2 else 32), outputs * places)
        if prior is not None and prior.shape == tuple(weight.shape):
            codebook = unpack(prior.parts["codebook"]).detach()
            if codebook.shape[::2] == (runs, width) and codebook.shape[1] <= max(k, 1):
                return prior.with_parts(codebook=codebook)
        self._check_smaller(weight, runs, k, width)
        top = float(weight.abs().max()) or 1.0
        rows = (weight.double() / top).reshape(1, outputs, channels * places)
        codebook, codes = self._clustered(rows, width, k, places)
        if self.correct:
            codebook, codes = self._corrected(rows, codebook, codes, stats, weight)
        most = torch.finfo(weight.dtype).max
        held = (codebook * top).clamp(-most, most).to(torch.promote_types(weight.dtype, torch.float32))
        codes = codes.reshape(outputs, runs, *weight.shape[2:]).to(torch.uint8 if k <= 256 else torch.int16)
        return Packed(NAME, tuple(weight.shape), weight.dtype, {"codes": codes, "codebook": held})

    def _check_smaller(self, weight: Tensor, runs: int, k: int, width: int) -> None:
        pieces = weight.numel() // weight.shape[1] * runs
        bits = runs * k * width * 32 + pieces * math.ceil(math.log2(max(k, 2)))
        whole = weight.numel() * weight.element_size() * 8
        if bits >= whole and not self.force:
            raise NotWorthwhile(
                f"{NAME}: {runs} codebooks of {k} x {width} and the codes of {tuple(weight.shape)} take {bits} bits, "
                f"the weight {whole}"
            )

    def _clustered(self, rows: Tensor, width: int, k: int, places: int) -> tuple[Tensor, Tensor]:
        _, outputs, columns = rows.shape
        channels = columns // places
        runs = -(-channels // width)
        padded = functional.pad(rows.reshape(outputs, channels, places), (0, 0, 0, runs * width - channels))
        points = padded.reshape(outputs, runs, width, places).permute(1, 0, 3, 2).reshape(runs, -1, width)
        codebook, codes = clustered(points.contiguous(), k, self.seed)
        return codebook, codes.reshape(runs, outputs, places).transpose(0, 1)[None]

    def _corrected(
        self, rows: Tensor, codebook: Tensor, codes: Tensor, stats: Any, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        gram = needed(stats, "gram", NAME).matrix.to(rows)
        groups, columns = gram.shape[0], gram.shape[1]
        if columns != rows.shape[2] or not groups or rows.shape[1] % groups:
            raise MethodError(f"{NAME}: the Gram matrix {tuple(gram.shape)} is of another layer than {weight.shape}")
        gram = (gram + gram.transpose(1, 2)) / 2
        mean = float(gram.diagonal(dim1=1, dim2=2).mean())
        gram = gram / (mean or 1.0)
        gram.diagonal(dim1=1, dim2=2).add_(self.damp)
        codes = codes.reshape(groups, -1, *codes.shape[2:]).clone()
        fit = SubSpaces.of(rows.reshape(groups, -1, columns), gram, codebook.clone(), codes)
        fit.settle(self.rounds)
        return fit.codebook, fit.codes

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        """Looks the codes up in the codebooks of their runs; differentiable in the codebooks."""
        codebook, codes = _checked(packed)
        rows = decoded(codebook, codes.reshape(1, *codes.shape[:2], -1), packed.shape[1])
        return rows.reshape(packed.shape).to(packed.dtype)

    @staticmethod
    def multiply(packed: Packed, inputs: Tensor) -> Tensor:
        """Returns inputs W^T by looking up the products of inputs and codewords.

        Args:
            packed: of a matrix (outputs, inputs), its codebook a tensor.
            inputs: (..., inputs).
        """
        codebook, codes = _checked(packed)
        if codes.ndim != 2:
            raise MethodError(f"{NAME}: {packed.shape} is a convolution's: use convolve")
        runs, _, width = codebook.shape
        flat = functional.pad(inputs.reshape(-1, packed.shape[1]), (0, runs * width - packed.shape[1]))
        table = torch.einsum("bmw,mkw->mbk", flat.reshape(-1, runs, width), codebook.to(inputs.dtype))
        result = inputs.new_zeros(len(flat), packed.shape[0])
        for own, code in zip(table, codes.T):
            result += own.index_select(1, code.long())
        return result.reshape(*inputs.shape[:-1], -1)

    @staticmethod
    def convolve(packed: Packed, layer: Any, inputs: Tensor) -> Tensor:
        """Returns what `layer`, a convolution of two dimensions, gives with this weight, by the same look-up.

        Args:
            packed: of a weight (outputs, inputs, kh, kw), its codebook a tensor.
            layer: gives stride, padding (numbers), dilation and bias; without groups, padded by zeros.
            inputs: (batch, inputs, height, width).
        """
        codebook, codes = _checked(packed)
        plain = codes.ndim == 4 and layer.groups == 1 and layer.padding_mode == "zeros"
        if not plain or isinstance(layer.padding, str):
            raise MethodError(f"{NAME}: convolve takes a Conv2d of one group with a padding in numbers, not {layer}")
        runs, _, width = codebook.shape
        (up, left), (down, right), (gap, gap_right) = layer.padding, layer.stride, layer.dilation
        padded = functional.pad(inputs, (left, left, up, up, 0, runs * width - packed.shape[1]))
        windows = padded.reshape(len(inputs), runs, width, *padded.shape[2:])
        table = torch.einsum("bmwyx,mkw->mbkyx", windows, codebook.to(inputs.dtype))
        height = (padded.shape[2] - gap * (codes.shape[2] - 1) - 1) // down + 1
        across = (padded.shape[3] - gap_right * (codes.shape[3] - 1) - 1) // right + 1
        result = inputs.new_zeros(len(inputs), packed.shape[0], height, across)
        for y in range(codes.shape[2]):
            for x in range(codes.shape[3]):
                rows = slice(y * gap, y * gap + (height - 1) * down + 1, down)
                columns = slice(x * gap_right, x * gap_right + (across - 1) * right + 1, right)
                for own, code in zip(table[..., rows, columns], codes[:, :, y, x].T):
                    result += own.index_select(1, code.long())
        return result if layer.bias is None else result + layer.bias[:, None, None]

    @staticmethod
    def take(packed: Packed, axis: int, kept: Tensor) -> Packed:
        """Takes outputs or places of the kernel.

        Raises:
            NotWorthwhile: along the input channels, whose runs stay whole.
        """
        if axis == 1:
            raise NotWorthwhile(f"{NAME}: runs of input channels can't be cut")
        return replace(
            packed.with_parts(codes=take(packed.parts["codes"], axis, kept)), shape=cut_shape(packed, axis, kept)
        )

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """A half, one and two bits a weight: 16 codewords for runs of 8, 4 and 2."""
        return tuple(cls(width=width, k=16) for width in (8, 4, 2))


def _checked(packed: Packed) -> tuple[Tensor, Tensor]:
    """Returns codebook and codes of what may come from a stranger."""
    shape = packed.shape
    codebook, codes = packed.tensor("codebook", integer=False), packed.tensor("codes", integer=True)
    if len(shape) < 2 or codebook.ndim != 3 or 0 in codebook.shape or codes.dtype not in {torch.uint8, torch.int16}:
        raise MethodError(f"{NAME}: {codes.dtype} codes, codebook {tuple(codebook.shape)} for {shape}")
    runs, k, width = codebook.shape
    if not (runs - 1) * width < shape[1] <= runs * width or codes.shape != (shape[0], runs, *shape[2:]):
        raise MethodError(f"{NAME}: codes {tuple(codes.shape)}, codebook {tuple(codebook.shape)} for {shape}")
    if codes.numel():
        low, high = (int(end) for end in codes.aminmax())
        if not 0 <= low <= high < k:
            raise MethodError(f"{NAME}: codes {low} .. {high} point outside the {k} codewords")
    return codebook, codes
