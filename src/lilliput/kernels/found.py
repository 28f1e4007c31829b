"""Which kernel serves a layer: every file of this folder is asked, and no list is kept.

A file serves layers by a function

    serves(packed, node, inputs) -> module or None

    packed  the layer's weight as the file holds it, a `Packed`
    node    the layer in the graph: a linear layer or a convolution, whose geometry `graph.layers.arguments_of` reads
    inputs  how what goes into the layer is quantized, a `core.activations.Quantized`, or None; may be left out

It looks at forms and settings only, and quickly: None where it can't do the layer at all. The module is called with the
layer's input, floats (on the quantizer's levels, where there is one), any batch, and its bias or None, and gives what
the layer would. It takes its buffers from `packed` when it is made, holds no parameters, and may have

    tolerance  largest |its result - the dense layer's| / |the dense layer's|, Frobenius; 1e-5 if it doesn't say
    rectifies  True if a third argument, True, makes it give max(0, y) for y
    kind       a few words for listings, such as "XNOR and bit count"; the file's name if it doesn't say

A file may also serve weights that nothing packed, by a function

    serves_dense(weight, node) -> module or None

Whether it is worth its while is measured by the engine. A module that raises MethodError on an input, or gives another
result than the dense layer beyond its tolerance, is left out, and the listing says so.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

from lilliput.core.activations import Quantized
from lilliput.core.packed import Packed
from lilliput.graph.ir import Node

TOLERANCE = 1e-5
"""How far a kernel may be from the dense layer if it doesn't say."""


def serving(packed: Packed, node: Node, inputs: Quantized | None = None) -> Iterator[tuple[str, nn.Module]]:
    """Yields the kernels that serve a layer, each with the name of its file.

    Args:
        packed: the layer's weight.
        node: a linear layer or a convolution of a graph.
        inputs: how its input is quantized.
    """
    for name, serves, takes_inputs in _files():
        module = serves(packed, node, inputs) if takes_inputs else serves(packed, node)
        if module is not None:
            yield name, module


def serving_dense(weight: Tensor, node: Node) -> Iterator[tuple[str, nn.Module]]:
    """Yields the kernels that serve a layer whose weight is as it was, each with the name of its file.

    Args:
        weight: floating-point.
        node: a linear layer or a convolution of a graph.
    """
    for name in _dense_files():
        module = importlib.import_module(f"lilliput.kernels.{name}").serves_dense(weight, node)
        if module is not None:
            yield name, module


@cache
def _dense_files() -> tuple[str, ...]:
    package = importlib.import_module("lilliput.kernels")
    names = [entry.name for entry in pkgutil.iter_modules(package.__path__)]
    return tuple(n for n in names if hasattr(importlib.import_module(f"lilliput.kernels.{n}"), "serves_dense"))


@cache
def _files() -> tuple[tuple[str, Any, bool], ...]:
    package = importlib.import_module("lilliput.kernels")
    found = []
    for entry in pkgutil.iter_modules(package.__path__):
        function = getattr(importlib.import_module(f"lilliput.kernels.{entry.name}"), "serves", None)
        if callable(function):
            found.append((entry.name, function, len(inspect.signature(function).parameters) > 2))
    return tuple(found)
