"""The window of a convolution in the graph, its stride, padding and the rest, as numbers for the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.graph.ir import Node
from lilliput.graph.layers import LINEAR, arguments_of

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """What a convolution of one or two dimensions reads, zeros around it; one dimension is a height of 1.

    Attributes:
        kernel: height and width of the window, as the others a pair of whole numbers.
        stride: from 1.
        padding: from 0, at both ends.
        dilation: from 1.
        groups: from 1.
        dims: 1 or 2.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    dims: int = 2

    @property
    def numbers(self) -> list[int]:
        """Kernel, stride, padding, dilation and groups in one list, as operators take them."""
        return [*self.kernel, *self.stride, *self.padding, *self.dilation, self.groups]

    @staticmethod
    def of(numbers: list[int]) -> Window:
        """Makes it of such a list.

        Raises:
            MethodError: a number that no convolution has.
        """
        if len(numbers) != 9 or min(*numbers[:4], *numbers[6:]) < 1 or min(numbers[4:6]) < 0 or max(numbers) >= 1 << 24:
            raise MethodError(f"no convolution has kernel, stride, padding, dilation and groups {numbers}")
        pairs = [(numbers[i], numbers[i + 1]) for i in range(0, 8, 2)]
        return Window(pairs[0], pairs[1], pairs[2], pairs[3], numbers[8])

    def out(self, height: int, width: int) -> Pair:
        """Returns height and width of the output.

        >>> Window((3, 3), (2, 2), (1, 1)).out(14, 15)
        (7, 8)
        """
        y, x = (
            (size + 2 * pad - gap * (side - 1) - 1) // step + 1
            for size, side, step, pad, gap in zip(
                (height, width), self.kernel, self.stride, self.padding, self.dilation
            )
        )
        return y, x

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Returns torch's convolution of x (batch, channels, height, width) with a whole weight."""
        return functional.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def window_of(node: Node, shape: tuple[int, ...]) -> Window | None:
    """Reads a node.

    Args:
        node: of the graph.
        shape: of its weight.

    Returns:
        None for anything but a convolution of one or two dimensions with the same zeros at both ends.
    """
    dims = len(shape) - 2
    if dims not in (1, 2) or not node.operator.startswith(f"aten.conv{dims}d."):
        return None
    bound = arguments_of(node)
    kernel = shape[2:]
    stride, dilation = _items(bound["stride"], dims), _items(bound["dilation"], dims)
    padding: Any = bound["padding"]
    if padding == "same":
        ends = [gap * (side - 1) for gap, side in zip(dilation, kernel)]
        if any(end % 2 for end in ends):
            return None
        padding = tuple(end // 2 for end in ends)
    padding = _items(0 if padding == "valid" else padding, dims)
    numbers = (*kernel, *stride, *padding, *dilation, bound["groups"])
    if not all(type(number) is int for number in numbers):
        return None
    fill = (1,) * (2 - dims)
    one, two, three = (fill + kernel, fill + stride, fill + dilation)
    return Window(_pair(one), _pair(two), _pair((0,) * (2 - dims) + padding), _pair(three), bound["groups"], dims)


def is_linear(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether a node is a linear layer with a matrix of this shape."""
    return node.operator == LINEAR and len(shape) == 2


def _items(value: Any, dims: int) -> tuple[Any, ...]:
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    return items * dims if len(items) == 1 else items


def _pair(items: tuple[int, ...]) -> Pair:
    return items[0], items[1]
