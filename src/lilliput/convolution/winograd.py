"""Winograd's minimal filtering F(m x m, r x r): fewer multiplications for small kernels of stride 1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.convolution.contract import Cost, with_bias
from lilliput.core.errors import MethodError
from lilliput.core.kernel import variant
from lilliput.hardware.layer import Layer
from lilliput.kernels import tiles, winograd
from lilliput.solve.toom_cook import POINTS, matrices


@dataclass(frozen=True)
class Winograd:
    """Y = A^T [(G g G^T) * (B^T d B)] A on tiles of m x m outputs (Lavin & Gray 2015, arXiv 1509.09308).

    (m + r - 1)^2 / m^2 multiplications for each output, channel and filter instead of r^2: for r = 3, 4 with m = 2
    (2.25 times fewer), 2.25 with m = 4 (4 times), 1.78 with m = 6 (5.1 times), as that many products of matrices. The
    error grows with m.

    Attributes:
        output: edge m of a tile.

    >>> Winograd(4).cost(Layer(64, 64, size=(8, 8), kernel=(3, 3), padding=(1, 1))).multiplications == 36 * 64 * 64 * 4
    True
    """

    output: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.output <= len(POINTS):
            raise MethodError(f"convolution/winograd: output must be 1 to {len(POINTS)}, not {self.output}")

    def unsuited(self, layer: Layer) -> str | None:
        """It takes square kernels, of stride and dilation 1, with output + taps - 1 at most 8."""
        taps, across = layer.kernel
        if taps != across:
            return f"the kernel is {taps} x {across}, not square; use im2col or fft"
        if layer.stride != (1, 1) or layer.dilation != (1, 1):
            return f"stride {layer.stride} and dilation {layer.dilation} must be 1; use im2col or mec"
        if self.output + taps - 1 > len(POINTS) + 1:
            most = len(POINTS) + 2 - taps
            return f"F({self.output}, {taps}) needs more points than are exact enough; " + (
                f"use output {most} or less" if most > 0 else "use fft"
            )
        return None

    def cost(self, layer: Layer, element: int = 4) -> Cost:
        """Returns alpha^2 N T K C / groups products for T tiles, alpha = m + r - 1.

        Workspace: alpha^2 (C T + K T) numbers, T over the batch; compiled, T of one block and C, K of one group, in
        rows of whole vectors. Prepared: alpha^2 K C / groups.
        """
        taps = layer.kernel[0]
        places = (self.output + taps - 1) ** 2
        count = self.tiles(layer)
        pairs = layer.filters * (layer.channels // layer.groups)
        sums = places * count * (pairs - layer.filters)
        into, out = _sums(self.output, taps)
        sums += count * (layer.channels * into + layer.filters * out)
        held, kept = places * count * (layer.channels + layer.filters), places * pairs
        if self._compiled(layer, element) and variant() != "reference":
            of_group = layer.channels // layer.groups, layer.filters // layer.groups
            held = winograd.block_of(count, *of_group, self.output).floats
            kept = places * layer.groups * -(-of_group[1] // winograd.PANEL) * winograd.PANEL * of_group[0]
        return Cost(places * count * pairs, sums, held * element, kept * element)

    def tiles(self, layer: Layer) -> int:
        """Returns the tiles of the whole batch."""
        high, wide = layer.output_size
        return layer.batch * -(-high // self.output) * -(-wide // self.output)

    def prepare(self, weight: Tensor, layer: Layer) -> Tensor:
        """Returns G g G^T for each group: (alpha, alpha, filters, channels), or as the kernels want it."""
        made = winograd.prepare if self._compiled(layer, weight.element_size()) else tiles.transformed
        return torch.stack([made(part, self.output) for part in weight.chunk(layer.groups)])

    def run(self, x: Tensor, prepared: Tensor, layer: Layer, bias: Tensor | None = None) -> Tensor:
        """Returns the convolution; see `contract.Algorithm`. Kernels of 3 x 3 run compiled for float32."""
        parts, each = zip(x.chunk(layer.groups, 1), prepared), layer.filters // layer.groups
        if self._compiled(layer, x.element_size()):
            starts = [None] * layer.groups if bias is None else bias.chunk(layer.groups)
            padding = list(layer.padding)
            found = [
                winograd.winograd(part, wide, start, each, self.output, padding, False)
                for (part, wide), start in zip(parts, starts)
            ]
            return found[0] if len(found) == 1 else torch.cat(found, 1)
        found = [tiles.correlate(part, wide, self.output, layer.kernel[0], layer.padding) for part, wide in parts]
        return with_bias(found[0] if len(found) == 1 else torch.cat(found, 1), bias)

    def _compiled(self, layer: Layer, element: int) -> bool:
        return layer.kernel == (3, 3) and element == 4 and self.output in winograd.OUTPUTS

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """Returns the gradients by the adjoint transforms."""
        parts = zip(grad.chunk(layer.groups, 1), x.chunk(layer.groups, 1), weight.chunk(layer.groups))
        found = [tiles.gradients(*part, self.output, layer.padding) for part in parts]
        return torch.cat([into for into, _ in found], 1), torch.cat([of_weight for _, of_weight in found])

    @classmethod
    def choices(cls) -> tuple[Winograd, ...]:
        """F(2, 3), F(4, 3) and F(6, 3)."""
        return (cls(2), cls(4), cls(6))


def _sums(output: int, taps: int) -> tuple[int, int]:
    """Additions of one tile: of the transform of its input, and of that of its output."""
    inverse, _, data = matrices(output, taps)
    size = output + taps - 1

    def of(matrix: tuple[tuple[object, ...], ...]) -> int:
        return sum(sum(value != 0 for value in row) - 1 for row in matrix)

    return 2 * size * of(data), (size + output) * of(inverse)
