"""Multiplications with addition: counted by running a model, and for each weight by its layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lilliput.graph.ir import Graph, NodeRef
from lilliput.graph.layers import layer_of
from lilliput.graph.run import bind_example
from lilliput.graph.shapes import shapes_of
from lilliput.graph.verify import run


def macs(model: nn.Module, example: Any) -> int:
    """Counts the multiplications with addition of matrix products and convolutions, those of attention included.

    Args:
        model: any module; run once in eval mode, and not changed.
        example: as for `trace`; the count is for all of its batch.

    >>> macs(nn.Conv2d(3, 8, 3, bias=False), torch.rand(1, 3, 6, 6)) == 8 * 3 * 9 * 16
    True
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    counter = FlopCounterMode(display=False)
    # Fused kernels have no count of their own: what they are made of has.
    try:
        with torch.no_grad(), _unfused(), sdpa_kernel(SDPBackend.MATH), counter:
            run(model, example)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return int(counter.get_total_flops()) // 2


@contextmanager
def _unfused() -> Iterator[None]:
    """Keeps torch from fused recurrent layers; its own switch warns of settings that aren't touched here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def uses(graph: Graph, tensors: Mapping[str, Tensor], example: Any) -> dict[str, float]:
    """Says how often each number of a weight is multiplied: MACs = uses x numel, for linear layers and convolutions.

    Args:
        graph: traced from the example.
        tensors: what it uses, by name.
        example: as for `trace`.

    Returns:
        By the weight's name; the sum over all layers that share it. Other weights aren't in it.
    """
    inputs = bind_example(graph, example)
    shapes = shapes_of(graph, tensors, inputs)
    found: dict[str, float] = {}
    for index, node in enumerate(graph.nodes):
        layer = layer_of(node)
        if layer is None or shapes is None:
            continue
        source = layer.source
        before = shapes[source.index] if isinstance(source, NodeRef) else tuple(inputs[source.index].shape)
        shape = before if layer.kind == "transposed" else shapes[index]
        if shape is None:
            continue
        weight = tensors[layer.weight]
        # Each place of the output (of the input, for transposed ones) meets the whole weight of its channels once.
        found[layer.weight] = found.get(layer.weight, 0.0) + math.prod(shape) / weight.shape[0]
    return found
