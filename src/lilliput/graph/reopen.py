"""Sizes that export took for constants opened again, where model and graph agree at another size.

Export unrolls recurrent layers over time while it traces them, and so fixes a length on which no node depends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lilliput.graph.ir import Graph, InputSpec

Compare = Callable[[Graph, list[Tensor]], bool]


def reopen(graph: Graph, leaves: Sequence[Tensor], offered: Sequence[set[int]], agree: Compare) -> Graph:
    """Tries each fixed size that was offered as open.

    Args:
        graph: as export gave it.
        leaves: the tensors it was traced with.
        offered: for each of them the dimensions offered as open.
        agree: says whether the model and a graph give the same outputs for tensors.

    Returns:
        The graph, with the sizes open at which both were seen to agree.
    """
    fixed = [
        (index, dim, size)
        for index, (spec, dims) in enumerate(zip(graph.inputs, offered))
        for dim, size in enumerate(spec.shape)
        if dim in dims and isinstance(size, int)
    ]
    for size in dict.fromkeys(size for _, _, size in fixed):
        places = [(index, dim) for index, dim, other in fixed if other == size]
        # Equal sizes may belong together, or one be a length and another a number of features.
        for group in dict.fromkeys((tuple(places), *((place,) for place in places))):
            wider = _open(graph, group)
            if wider is not None and agree(wider, [_resized(leaf, i, group) for i, leaf in enumerate(leaves)]):
                graph = wider
    return graph


def _open(graph: Graph, group: Sequence[tuple[int, int]]) -> Graph | None:
    name = next(name for name in ("n", *(f"s{i}" for i in range(1, 10**6))) if name not in graph.symbols)
    shapes = [list(spec.shape) for spec in graph.inputs]
    for index, dim in group:
        if isinstance(shapes[index][dim], str):
            return None
        shapes[index][dim] = name
    specs = tuple(InputSpec(spec.name, spec.dtype, tuple(shape)) for spec, shape in zip(graph.inputs, shapes))
    return replace(graph, inputs=specs, symbols={**graph.symbols, name: (1, None)})


def _resized(leaf: Tensor, index: int, group: Sequence[tuple[int, int]]) -> Tensor:
    """One longer in the dimensions of the group; floating values are drawn, so that no chance agreement remains."""
    dims = {dim for place, dim in group if place == index}
    for dim in dims:
        leaf = torch.cat([leaf, leaf.narrow(dim, 0, 1)], dim)
    generator = torch.Generator().manual_seed(0)
    if not leaf.is_floating_point():
        return leaf
    drawn: Any = torch.rand(leaf.shape, generator=generator)
    return drawn.to(leaf)  # type: ignore[no-any-return]
