"""What several networks are built of, and the checks of the settings that all of them have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lilliput.core.checks import check_range
from lilliput.core.errors import MethodError
from lilliput.core.method import path_of

SMALL = 64
"""Pictures smaller than this keep their size through the first layers, where networks for ImageNet quarter it."""


def check_net(net: Any, least: int = 4) -> None:
    """Raises MethodError unless classes, channels and size make sense.

    Args:
        net: settings with `num_classes`, `channels` and `size`.
        least: smallest size.
    """
    name = path_of(net)
    for field, low in (("num_classes", 1), ("channels", 1), ("size", least)):
        value = getattr(net, field)
        if not isinstance(value, int):
            raise MethodError(f"{name}: {field} = {value!r} must be a whole number")
        check_range(name, field, value, low, 2**20)


def check_choice(net: Any, field: str, allowed: Iterable[object]) -> None:
    """Raises MethodError unless a setting is one of those that there are."""
    known = list(allowed)
    if getattr(net, field) not in known:
        raise MethodError(f"{path_of(net)}: no {field} {getattr(net, field)!r}; there is {', '.join(map(str, known))}")


def conv_norm(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Returns a convolution without bias, padded to keep the size at stride 1, and its BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Returns a number of channels times a width, rounded up to a multiple; at least that multiple.

    >>> scaled(64, 0.75), scaled(100, 0.5, 8)
    (48, 56)
    """
    return max(-(-round(channels * width) // multiple), 1) * multiple
