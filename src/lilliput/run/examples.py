"""What a graph is timed with: inputs of the sizes that it takes."""

from __future__ import annotations

import torch
from torch import Tensor

from lilliput.graph.ir import Graph

LENGTH = 64
"""An open size that is no batch is this while layers are timed, if it may be."""


def example_inputs(graph: Graph, batch: int = 1, length: int = LENGTH) -> list[Tensor]:
    """Makes inputs to time a graph with: normal random numbers, always the same, and ones for integers and bools.

    Args:
        graph: any graph.
        batch: the size of an open first axis, as far as it may be.
        length: the other open sizes.
    """
    first = {spec.shape[0] for spec in graph.inputs if spec.shape}
    sizes = {}
    for name, (low, high) in graph.symbols.items():
        sizes[name] = min(max(batch if name in first else length, low), high or 2**31)
    generator = torch.Generator().manual_seed(0)
    made = []
    for spec in graph.inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        if spec.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(spec.dtype))
        else:
            made.append(torch.ones(shape).to(spec.dtype))
    return made
