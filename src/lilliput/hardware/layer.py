"""A convolution or a linear layer as the models of hardware see it: its sizes, bits and densities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lilliput.core.errors import DeviceError

Pair = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """One layer with what goes into it; nothing of its values.

    A linear layer of C inputs and K outputs is a convolution of height, width and kernel 1.

    Attributes:
        channels: of the input, C.
        filters: output channels, K.
        size: height and width of the input, without padding.
        kernel: height R and width S.
        stride: down and across.
        padding: rows above and below, columns left and right; each on both sides.
        dilation: down and across.
        groups: of channels.
        batch: N, inputs at a time.
        weight_bits: of a weight.
        input_bits: of an activation that goes in.
        output_bits: of an activation that comes out, and of a partial sum.
        weight_density: part of the weights that isn't zero.
        input_density: part of the inputs that isn't zero.
        output_density: part of the outputs that isn't zero, after the activation function.
        name: for tables and messages.

    Raises:
        DeviceError: a size that can't be; a kernel larger than the padded input.

    >>> conv1 = Layer(3, 96, size=(227, 227), kernel=(11, 11), stride=(4, 4), name="conv1")
    >>> conv1.output_size, conv1.macs, conv1.weights, conv1.inputs, conv1.outputs
    ((55, 55), 105415200, 34848, 154587, 290400)
    """

    channels: int
    filters: int
    size: Pair = (1, 1)
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    batch: int = 1
    weight_bits: int = 16
    input_bits: int = 16
    output_bits: int = 16
    weight_density: float = 1.0
    input_density: float = 1.0
    output_density: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        where = f"layer '{self.name}': " if self.name else "layer: "
        whole = {"channels": self.channels, "filters": self.filters, "groups": self.groups, "batch": self.batch}
        for pair in ("size", "kernel", "stride", "dilation"):
            whole |= {f"{pair}[{i}]": value for i, value in enumerate(getattr(self, pair))}
        for name, value in whole.items():
            if value < 1:
                raise DeviceError(f"{where}{name} must be at least 1, it is {value}")
        if min(self.padding) < 0:
            raise DeviceError(f"{where}padding must not be negative, it is {self.padding}")
        if self.channels % self.groups or self.filters % self.groups:
            raise DeviceError(
                f"{where}{self.groups} groups don't divide {self.channels} channels, {self.filters} filters"
            )
        for name in ("weight_bits", "input_bits", "output_bits"):
            if not 1 <= getattr(self, name) <= 64:
                raise DeviceError(f"{where}{name} must be 1 to 64, it is {getattr(self, name)}")
        for name in ("weight_density", "input_density", "output_density"):
            if not 0 <= getattr(self, name) <= 1:
                raise DeviceError(f"{where}{name} must be 0 to 1, it is {getattr(self, name)}")
        for padded, extent in zip(self.padded, self.extent):
            if extent > padded:
                raise DeviceError(f"{where}the kernel covers {extent}, more than the padded input of {padded}")

    @property
    def padded(self) -> Pair:
        """Height and width of the padded input."""
        return self.size[0] + 2 * self.padding[0], self.size[1] + 2 * self.padding[1]

    @property
    def extent(self) -> Pair:
        """Rows and columns of the input that the kernel reaches over."""
        return (self.kernel[0] - 1) * self.dilation[0] + 1, (self.kernel[1] - 1) * self.dilation[1] + 1

    @cached_property
    def output_size(self) -> Pair:
        """Height E and width F of the output."""
        high, wide = ((p - e) // s + 1 for p, e, s in zip(self.padded, self.extent, self.stride))
        return high, wide

    @cached_property
    def used(self) -> Pair:
        """Height and width of the padded input that some output looks at."""
        high, wide = (span(count, 1, s, e) for count, s, e in zip(self.output_size, self.stride, self.extent))
        return high, wide

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of the whole batch: N K (C / groups) R S E F."""
        return self.outputs * self.depth

    @property
    def depth(self) -> int:
        """Products that each output is the sum of: (C / groups) R S."""
        return self.channels // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def weights(self) -> int:
        """Weights: K (C / groups) R S."""
        return self.filters * self.depth

    @property
    def inputs(self) -> int:
        """Padded inputs of the batch that are looked at: N C H W; with padding, as the papers count."""
        return self.batch * self.channels * self.used[0] * self.used[1]

    @property
    def outputs(self) -> int:
        """Outputs of the batch: N K E F."""
        return self.batch * self.filters * self.output_size[0] * self.output_size[1]


def span(count: int, pieces: int, stride: int, extent: int) -> int:
    """Returns how many input rows `count` output rows look at, if they are computed in so many pieces.

    Rows at the seams are looked at by both neighbours: stride (count - pieces) + extent * pieces, or, where the stride
    leaves rows out, count * extent.

    >>> span(55, 1, 4, 11), span(55, 4, 4, 11), span(5, 1, 3, 1)
    (227, 248, 5)
    """
    return count * extent if stride >= extent else stride * (count - pieces) + extent * pieces
