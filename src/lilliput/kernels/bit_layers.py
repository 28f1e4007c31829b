"""Layers that run on bits, made of their weights: signs, codes of a few bits, and -1, 0, +1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.kernels import binary
from lilliput.kernels.binary_linear import BLOCK
from lilliput.kernels.bit_conv import AND, TERNARY, XOR, bit_conv, bit_conv_signs, bit_conv_total, xnor_conv
from lilliput.kernels.pack_maps import pack_planes, pack_sign_maps

Pair = tuple[int, int]


@dataclass(frozen=True)
class Steps:
    """Stride, padding and dilation of a convolution, each of rows and columns."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)


@dataclass(frozen=True, eq=False)
class BitLayer:
    """A convolution of maps of bits; a linear layer is one of 1 x 1 maps.

    Attributes:
        layer: weight, outside, base and levels, see `bit_conv_total`.
        numbers: kind and offset.
        geometry: of the kernel, stride, padding and dilation.
    """

    layer: list[Tensor]
    numbers: list[int]
    geometry: list[int]

    def total(self, x: Tensor) -> Tensor:
        """Returns the whole numbers that come out, (batch, outputs, height, width), int32, of planes of bits."""
        found: Tensor = bit_conv_total(x, self.layer, self.numbers, self.geometry)
        return found

    def real(self, x: Tensor, scale: Tensor, bias: Tensor | None = None, magnitude: Tensor | None = None) -> Tensor:
        """Returns total x scale x K + bias, float32.

        Args:
            x: planes of bits.
            scale: (outputs,).
            bias: (outputs,), or None.
            magnitude: (batch, 1, height, width) of what goes in: XNOR-Net's A, whose means over the windows are K.
        """
        if magnitude is not None:
            kh, kw, sh, sw, ph, pw, dh, dw = self.geometry
            if (dh, dw) != (1, 1):
                raise MethodError("K is made of windows without dilation")
            sides = functional.pad(magnitude, (pw, pw, ph, ph))
            magnitude = functional.avg_pool2d(sides, (kh, kw), (sh, sw))
        found: Tensor = bit_conv(x, self.layer, self.numbers, self.geometry, scale, bias, magnitude)
        return found

    def xnor_net(self, x: Tensor, scale: Tensor, bias: Tensor | None = None, scaled: bool = True) -> Tensor:
        """Returns XNOR-Net's layer whole: signs of floats, K of them if `scaled`, alpha (`scale`) and bias.

        Args:
            x: (batch, channels, height, width), float32.
            scale: (outputs,).
            bias: (outputs,), or None.
            scaled: multiply by K.
        """
        found: Tensor = xnor_conv(x, self.layer, self.geometry, scale, bias, scaled)
        return found

    def signs(self, x: Tensor, thresholds: binary.Thresholds) -> Tensor:
        """Returns the packed signs behind a BatchNorm that `binary.fold` folded, one plane for the next layer."""
        sign = torch.where(thresholds.up, 1, -1)
        at, sign = (sign * thresholds.at).int(), sign.int()
        found: Tensor = bit_conv_signs(x, self.layer, self.numbers, self.geometry, at, sign)
        return found


def sign_planes(x: Tensor) -> Tensor:
    """Returns the signs of maps (batch, channels, height, width), or of rows, as one plane of bits."""
    return pack_sign_maps(x if x.dim() == 4 else x[:, :, None, None])[0][None]


def ternary_planes(x: Tensor) -> Tensor:
    """Returns -1, 0 and +1, (batch, channels, height, width), as the planes "not zero" and "negative"."""
    return pack_planes(((x != 0).byte() + 2 * (x < 0).byte()), 2)


def xnor_layer(weight: Tensor, steps: Steps | None = None, border: int = 0) -> BitLayer:
    """Makes the layer of XNOR-Net and BinaryNet: sum of sign(x) sign(w), by XNOR and bit count.

    Rastegari et al. 2016, arXiv 1603.05279; Courbariaux, Hubara et al. 2016, arXiv 1602.02830. sign(0) is +1.

    Args:
        weight: (outputs, channels, kh, kw), or (outputs, n).
        steps: of the convolution; None for strides of 1 and no padding.
        border: what lies outside: 0, which is no sign and adds nothing, -1 or +1.

    Raises:
        MethodError: another border.

    >>> layer = xnor_layer(torch.tensor([[1.0, -1.0, 1.0]]))
    >>> layer.total(sign_planes(torch.tensor([[2.0, 0.5, -3.0]]))).flatten()
    tensor([-1], dtype=torch.int32)
    """
    if border not in (-1, 0, 1):
        raise MethodError(f"the border of a binary convolution is -1, 0 or +1, not {border}")
    weight = _kernels(weight)
    signs = torch.where(weight >= 0, 1, -1)
    sums = _sums(signs)
    base = torch.full((len(weight),), weight[0].numel(), dtype=torch.int32)
    # `base` counts all taps, as if equal signs were all there is.
    outside = border * sums - weight.shape[1]
    rest = [outside, base, torch.tensor([-2, 1], dtype=torch.int32)]
    return _layer([_blocks(signs > 0)], rest, [XOR, 0], weight, steps)


@dataclass(frozen=True)
class Codes:
    """What codes of a few bits stand for: step x code + offset, whole numbers."""

    bits: int
    step: int = 1
    offset: int = 0


def plane_layer(weight: Tensor, own: Codes, of_x: Codes, steps: Steps | None = None) -> BitLayer:
    """Makes a layer of k-bit inputs and m-bit weights: sum_ij 2^(i + j) popcount(x_i & w_j).

    Zhou et al. 2016 (DoReFa-Net), arXiv 1606.06160; Hubara et al. 2016 (QNN), arXiv 1609.07061. DoReFa's weights are
    (2 code - (2^m - 1)) / (2^m - 1), so `Codes(m, 2, 1 - 2**m)`; its inputs code / (2^k - 1), `Codes(k)`. Outside
    of a map the input is 0. Inputs are packed by `pack_planes(codes, of_x.bits)`.

    Args:
        weight: (outputs, channels, kh, kw) or (outputs, n), codes.
        own: what the codes of the weight stand for.
        of_x: what those of the input stand for.
        steps: of the convolution.

    Raises:
        MethodError: a code beyond its bits, or more than 8 bits.

    >>> layer = plane_layer(torch.tensor([[0, 3]]), Codes(2, 2, -3), Codes(2))
    >>> layer.total(pack_planes(torch.tensor([1, 3], dtype=torch.uint8).reshape(1, 2, 1, 1), 2)).flatten()
    tensor([6], dtype=torch.int32)
    """
    weight = _kernels(weight).long()
    if not (1 <= own.bits <= 8 and 1 <= of_x.bits <= 8) or int(weight.min()) < 0 or int(weight.max()) >= 2**own.bits:
        raise MethodError(
            f"codes of {own.bits} and {of_x.bits} bits: there are 1 to 8, and weights from 0 on within them"
        )
    sums = _sums(own.step * weight + own.offset)
    base = of_x.offset * sums.sum(0, dtype=torch.int32)
    levels = [of_x.step * 2**i for i in range(of_x.bits)] + [own.step * 2**j for j in range(own.bits)]
    planes = [_blocks(weight >> plane & 1) for plane in range(own.bits)]
    rest = [-of_x.offset * sums, base, torch.tensor(levels, dtype=torch.int32)]
    return _layer(planes, rest, [AND, own.offset], weight, steps)


def ternary_layer(weight: Tensor, steps: Steps | None = None) -> BitLayer:
    """Makes a layer of -1, 0, +1 on both sides: equal signs less different signs, where neither is zero.

    Alemdar et al. 2016 (TNN), arXiv 1609.00222. Inputs are packed by `ternary_planes`.

    Args:
        weight: (outputs, channels, kh, kw) or (outputs, n), of -1, 0 and +1.
        steps: of the convolution.

    >>> layer = ternary_layer(torch.tensor([[1, -1, 0]]))
    >>> layer.total(ternary_planes(torch.tensor([-1.0, -1, 1]).reshape(1, 3, 1, 1))).flatten()
    tensor([0], dtype=torch.int32)
    """
    weight = _kernels(weight)
    planes = [_blocks(weight != 0), _blocks(weight < 0)]
    # A word's count is 32 more than its product.
    taps, words = weight.shape[2] * weight.shape[3], planes[0].shape[1]
    base = torch.full((len(weight),), -32 * words, dtype=torch.int32)
    outside = torch.full((taps, len(weight)), 32 * words // taps, dtype=torch.int32)
    return _layer(planes, [outside, base, torch.ones(2, dtype=torch.int32)], [TERNARY, 0], weight, steps)


def _kernels(weight: Tensor) -> Tensor:
    if weight.dim() not in (2, 4) or not weight.numel():
        raise MethodError(f"bits serve weights (outputs, channels, kh, kw) or (outputs, n), not {tuple(weight.shape)}")
    return weight.detach() if weight.dim() == 4 else weight.detach()[:, :, None, None]


def _sums(values: Tensor) -> Tensor:
    """What the weights of a tap add up to: (taps, outputs), int32."""
    return values.long().sum(1).flatten(1).T.contiguous().int()


def _blocks(bits: Tensor) -> Tensor:
    """Bits (outputs, channels, kh, kw) as [outputs / 64][taps x words of 32][64], int32."""
    words = binary.pack_bits(bits.permute(0, 2, 3, 1).int()).flatten(1).contiguous().view(torch.int32)
    padded = functional.pad(words, (0, 0, 0, -len(words) % BLOCK))
    return padded.reshape(-1, BLOCK, padded.shape[1]).transpose(1, 2)


def _layer(
    planes: list[Tensor], rest: list[Tensor], numbers: list[int], weight: Tensor, steps: Steps | None
) -> BitLayer:
    own = steps or Steps()
    geometry = [*weight.shape[2:], *own.stride, *own.padding, *own.dilation]
    return BitLayer([torch.stack(planes).contiguous(), *rest], numbers, geometry)
