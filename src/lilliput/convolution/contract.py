"""What an algorithm of convolution offers, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lilliput.core.errors import DeviceError, MethodError
from lilliput.hardware.layer import Layer

Two = int | tuple[int, int]


@dataclass(frozen=True)
class Cost:
    """What one call of an algorithm costs.

    Attributes:
        multiplications: of general numbers; those by the constants of a transform aren't counted.
        additions: all of them, with those of the transforms.
        workspace: bytes beside input, output and prepared weights, while it runs.
        prepared: bytes of the weights as `prepare` leaves them.
    """

    multiplications: int
    additions: int
    workspace: int
    prepared: int


class Algorithm(Protocol):
    """A way to convolve: a frozen dataclass of its settings in the file of its name in `convolution/`.

    All compute y[n, k, p, q] = sum over c, r, s of x[n, c, p s_h + r d_h - p_h, q s_w + s d_w - p_w] w[k, c, r, s]: the
    correlation that `torch.nn.functional.conv2d` gives, what is outside counting as 0. Those that can be trained with
    also have `gradients`.
    """

    def unsuited(self, layer: Layer) -> str | None:
        """Says why it can't compute this layer; None if it can."""
        ...

    def cost(self, layer: Layer, element: int = 4) -> Cost:
        """Returns what a call costs.

        Args:
            layer: that it is suited to.
            element: bytes of a number.
        """
        ...

    def prepare(self, weight: Tensor, layer: Layer) -> Tensor:
        """Returns the weights as `run` wants them, which need be made only once.

        Args:
            weight: (filters, channels / groups, height, width), floating-point.
            layer: its sizes.
        """
        ...

    def run(self, x: Tensor, prepared: Tensor, layer: Layer, bias: Tensor | None = None) -> Tensor:
        """Returns the convolution.

        Args:
            x: (batch, channels, height, width), of the weight's dtype.
            prepared: from `prepare`, for this layer.
            layer: sizes of x and weight.
            bias: (filters,), added to the result.

        Returns:
            (batch, filters, output height, output width).
        """
        ...

    @classmethod
    def choices(cls) -> tuple[Algorithm, ...]:
        """Settings worth measuring."""
        ...


class Trainable(Algorithm, Protocol):
    """An algorithm that also computes the gradients of the convolution by its own means."""

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """Returns the gradients of x and of the weight.

        Args:
            grad: of the result, of its shape.
            x: as in `run`.
            weight: as in `prepare`.
            layer: sizes.
        """
        ...


def pair(value: Two) -> tuple[int, int]:
    """Returns a number twice, or the pair that it is.

    >>> pair(3), pair((1, 2))
    ((3, 3), (1, 2))
    """
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def layer_of(x: Tensor, weight: Tensor, stride: Two = 1, padding: Two = 0, dilation: Two = 1, groups: int = 1) -> Layer:
    """Returns the sizes of a convolution.

    Args:
        x: (batch, channels, height, width).
        weight: (filters, channels / groups, kernel height, kernel width).
        stride: down and across, or one for both; so the next two.
        padding: on both sides.
        dilation: step between the taps of the kernel.
        groups: of channels.

    Raises:
        MethodError: not four axes, another dtype, channels that don't fit, a kernel larger than the padded input.

    >>> import torch
    >>> layer_of(torch.zeros(1, 8, 9, 9), torch.zeros(4, 8, 3, 3), padding=1).output_size
    (9, 9)
    """
    if x.ndim != 4 or weight.ndim != 4:
        raise MethodError(f"a convolution takes x and weight of 4 axes, not {tuple(x.shape)} and {tuple(weight.shape)}")
    if x.dtype != weight.dtype:
        raise MethodError(f"x is {x.dtype} and the weight {weight.dtype}: convert one of them")
    if groups < 1 or weight.shape[1] * groups != x.shape[1]:
        raise MethodError(
            f"x has {x.shape[1]} channels, the weight takes {weight.shape[1]} in each of {groups} groups: no match"
        )
    sizes = pair(stride), pair(padding), pair(dilation), groups, x.shape[0]
    kernel, size = (weight.shape[2], weight.shape[3]), (x.shape[2], x.shape[3])
    try:
        return Layer(x.shape[1], weight.shape[0], size, kernel, *sizes)
    except DeviceError as error:
        raise MethodError(f"a convolution of {tuple(x.shape)} by {tuple(weight.shape)}: {error}") from None


def check(algorithm: Algorithm, layer: Layer) -> None:
    """Raises MethodError if an algorithm can't compute a layer."""
    reason = algorithm.unsuited(layer)
    if reason is not None:
        raise MethodError(f"convolution/{type(algorithm).__name__.lower()}: {reason}")


def with_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    """Adds a bias for each filter to a fresh result, in place."""
    return y if bias is None else y.add_(bias[:, None, None])


def window(layer: Layer) -> list[int]:
    """Returns stride, padding and dilation, each down and across, as the kernels take them."""
    return [*layer.stride, *layer.padding, *layer.dilation]


def grouped(x: Tensor, layer: Layer) -> Tensor:
    """Returns a view of x, (batch, groups, channels / groups, height, width)."""
    return x.reshape(x.shape[0], layer.groups, -1, *x.shape[2:])
