"""Convolution in the frequency domain, whole or in tiles: one transform of the input serves all filters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.convolution.contract import Cost, grouped, window, with_bias
from lilliput.core.errors import MethodError
from lilliput.core.kernel import variant
from lilliput.hardware.layer import Layer
from lilliput.kernels import fft_conv


@dataclass(frozen=True)
class Fft:
    """y = F^-1(sum over c of F(x) conj(F(w))) (Mathieu, Henaff & LeCun 2013, arXiv 1312.5851).

    N C + K C / groups + N K real transforms instead of N K C of them: memory for time. Of each circular correlation
    those places count that no wrapping reaches. Strides are computed densely and subsampled, dilated kernels filled
    with zeros: it pays for large kernels of stride 1. The error is small beside the largest output, not beside each.

    Attributes:
        tile: length of the transform of a tile (overlap-save), tiles sharing one transform of the kernels and a row of
            tiles being worked on together; 0 for the whole input at once.

    >>> Fft().cost(Layer(2, 3, size=(8, 8), kernel=(3, 3))).workspace == 8 * 8 * 5 * (2 + 3)
    True
    """

    tile: int = 0

    def __post_init__(self) -> None:
        if self.tile < 0:
            raise MethodError(f"convolution/fft: tile must be 0 (whole) or the length of a transform, not {self.tile}")

    def unsuited(self, layer: Layer) -> str | None:
        """A tile must be longer than the kernel."""
        reach = max(layer.extent)
        if self.tile and self.tile < reach:
            return f"a tile of {self.tile} is shorter than the kernel, which covers {reach}; make it {2 * reach} or so"
        return None

    def cost(self, layer: Layer, element: int = 4) -> Cost:
        """Returns 4 N C K / groups products at n1 (n2 / 2 + 1) frequencies for each tile, and what transforms add.

        A real transform of n numbers is counted n log2 n additions and n log2 n / 2 multiplications, an estimate: those
        by its constants aren't in `multiplications`. Spectra: 2 numbers for each frequency. Compiled: n1 n2 / 2
        frequencies, those that are real in pairs, and a workspace for one block of tiles of one group.
        """
        (down, across), (high, wide) = self._tiles(layer), self._lengths(layer)
        compiled = self._compiled(element)
        frequencies, tiles = high * wide // 2 if compiled else high * (wide // 2 + 1), down * across
        pairs = layer.batch * layer.filters * (layer.channels // layer.groups)
        transforms = layer.batch * (layer.channels + layer.filters) * tiles
        each = round(high * wide * math.log2(max(2, high * wide)))
        sums = 2 * frequencies * tiles * (pairs + pairs - layer.batch * layer.filters)
        spectra = 2 * element * frequencies
        held = spectra * layer.batch * (layer.channels + layer.filters) * (tiles if compiled else across)
        if compiled and variant() != "reference":
            of_group = layer.channels // layer.groups, layer.filters // layer.groups
            held = element * fft_conv.block_of(layer.batch * tiles, *of_group, self.tile).floats
        return Cost(
            4 * frequencies * tiles * pairs,
            sums + transforms * each,
            held,
            spectra * layer.filters * layer.channels // layer.groups,
        )

    def prepare(self, weight: Tensor, layer: Layer) -> Tensor:
        """Returns conj(F(w)), (groups, n1 (n2 / 2 + 1), channels / groups, filters / groups), complex.

        Compiled: as the kernel wants it, float32; see `kernels.fft_conv.prepare`.
        """
        if self._compiled(weight.element_size()):
            return fft_conv.prepare(weight, self.tile, layer.groups, layer.dilation)
        spectra = self._spectrum(weight, layer).flatten(3).permute(0, 3, 2, 1)
        return spectra.conj().resolve_conj().contiguous()

    def run(self, x: Tensor, prepared: Tensor, layer: Layer, bias: Tensor | None = None) -> Tensor:
        """Returns the convolution; see `contract.Algorithm`. At each frequency it is a product of matrices."""
        if self._compiled(x.element_size()):
            found: Tensor = fft_conv.fft_conv(x, prepared, bias, list(layer.kernel), window(layer), False)
            return found
        steps, lengths = self._steps(layer), self._lengths(layer)
        down, across = self._tiles(layer)
        half = lengths[0], lengths[1] // 2 + 1
        dense = x.new_empty(layer.batch, layer.filters, down * steps[0], across * steps[1])
        for row in range(down):
            spectra = torch.fft.rfft2(grouped(self._row(x, row, layer), layer), s=lengths)
            # groups, frequencies, images and tiles, channels
            spectra = spectra.permute(1, 4, 5, 0, 3, 2).reshape(layer.groups, half[0] * half[1], -1, prepared.shape[2])
            product = (spectra @ prepared).reshape(layer.groups, *half, layer.batch, across, -1)
            product = product.permute(3, 0, 5, 4, 1, 2).contiguous()
            outputs = torch.fft.irfft2(product, s=lengths)[..., : steps[0], : steps[1]].flatten(1, 2)
            place = dense[:, :, row * steps[0] : (row + 1) * steps[0]]
            place.copy_(outputs.permute(0, 1, 3, 2, 4).flatten(3))
        return with_bias(self._sampled(dense, layer).contiguous(), bias)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """Returns the gradients, from the same spectra.

        F(dx) = sum over k of F(dy) F(w), tiles added where they overlap; F(dw) = sum over n of F(x) conj(F(dy)), of
        which the places under the kernel's taps count.
        """
        steps, lengths = self._steps(layer), self._lengths(layer)
        down, across = self._tiles(layer)
        kernels = self._spectrum(weight, layer)
        dense = grad.new_zeros(layer.batch, layer.filters, down * steps[0], across * steps[1])
        self._sampled(dense, layer).copy_(grad)
        padded = x.new_zeros(layer.batch, layer.channels, *self._covered(layer))
        of_weight = torch.zeros_like(kernels)
        for row in range(down):
            strip = dense[:, :, row * steps[0] : (row + 1) * steps[0]]
            tiles = strip.reshape(*strip.shape[:3], across, steps[1]).permute(0, 1, 3, 2, 4)
            slopes = torch.fft.rfft2(grouped(tiles, layer), s=lengths)
            spectra = torch.fft.rfft2(grouped(self._row(x, row, layer), layer), s=lengths)
            of_weight += torch.einsum("ngctuv,ngktuv->gkcuv", spectra, slopes.conj())
            into = torch.fft.irfft2(torch.einsum("ngktuv,gkcuv->ngctuv", slopes, kernels), s=lengths).flatten(1, 2)
            for column in range(across):
                at = (row * steps[0], column * steps[1])
                padded[:, :, at[0] : at[0] + lengths[0], at[1] : at[1] + lengths[1]] += into[:, :, column]
        (up, left), (high, wide) = layer.padding, layer.size
        taps = torch.fft.irfft2(of_weight, s=lengths)[..., : layer.extent[0], : layer.extent[1]]
        taps = taps[..., :: layer.dilation[0], :: layer.dilation[1]]
        return padded[:, :, up : up + high, left : left + wide].contiguous(), taps.reshape(weight.shape)

    @classmethod
    def choices(cls) -> tuple[Fft, ...]:
        """The whole input, and the tiles that are compiled."""
        return (cls(), *(cls(tile) for tile in fft_conv.TILES))

    def _compiled(self, element: int) -> bool:
        return self.tile in fft_conv.TILES and element == 4

    def _lengths(self, layer: Layer) -> tuple[int, int]:
        """Lengths of the transform: of a tile, or what the padded input needs."""
        if self.tile:
            return self.tile, self.tile
        return good_length(layer.padded[0]), good_length(layer.padded[1])

    def _steps(self, layer: Layer) -> tuple[int, int]:
        """Outputs of stride 1 that a tile gives."""
        high, wide = (length - reach + 1 for length, reach in zip(self._lengths(layer), layer.extent))
        return high, wide

    def _tiles(self, layer: Layer) -> tuple[int, int]:
        dense = (padded - reach + 1 for padded, reach in zip(layer.padded, layer.extent))
        down, across = (-(-size // step) for size, step in zip(dense, self._steps(layer)))
        return down, across

    def _covered(self, layer: Layer) -> tuple[int, int]:
        """Height and width that all tiles cover; the padded input, or more."""
        high, wide = (
            (count - 1) * step + length
            for count, step, length in zip(self._tiles(layer), self._steps(layer), self._lengths(layer))
        )
        return high, wide

    def _row(self, x: Tensor, row: int, layer: Layer) -> Tensor:
        """One row of tiles, padded, (batch, channels, tiles, n1, n2)."""
        (step, across_step), (length, width) = self._steps(layer), self._lengths(layer)
        top = row * step - layer.padding[0]
        first, end = max(0, top), min(layer.size[0], top + length)
        strip = x[:, :, first : max(first, end)]
        total = self._covered(layer)[1]
        right = total - layer.size[1] - layer.padding[1]
        strip = functional.pad(strip, (layer.padding[1], right, first - top, length - (first - top) - strip.shape[2]))
        return strip.unfold(3, width, across_step).permute(0, 1, 3, 2, 4)

    def _spectrum(self, weight: Tensor, layer: Layer) -> Tensor:
        kernels = weight.reshape(layer.groups, -1, *weight.shape[1:])
        if layer.dilation != (1, 1):
            spread = kernels.new_zeros(*kernels.shape[:3], *layer.extent)
            spread[..., :: layer.dilation[0], :: layer.dilation[1]] = kernels
            kernels = spread
        found: Tensor = torch.fft.rfft2(kernels, s=self._lengths(layer))
        return found

    @staticmethod
    def _sampled(dense: Tensor, layer: Layer) -> Tensor:
        """The outputs among those of stride 1, a view."""
        (high, wide), (down, across) = layer.output_size, layer.stride
        return dense[:, :, : (high - 1) * down + 1 : down, : (wide - 1) * across + 1 : across]


def good_length(least: int) -> int:
    """Returns the smallest length from `least` on whose primes are 2, 3 and 5.

    >>> good_length(13), good_length(226)
    (15, 240)
    """
    while True:
        rest = least
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return least
        least += 1
