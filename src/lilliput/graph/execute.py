"""A program's steps run one after another, at new sizes only after every result has been bounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lilliput.core.errors import FileError, LilliputError
from lilliput.graph.bounds import elements, first_line
from lilliput.graph.ir import Graph
from lilliput.graph.program import Program, Step, Values

MOST_ELEMENTS = 2**31
# Results of up to 256 MB are made as they come. Beyond, all sizes are found on the meta device first, which takes
# seconds the first time because torch loads a symbolic algebra for it.
_ALLOWANCE = 2**26


class TooLargeError(FileError):
    """A graph whose results would take more memory than allowed."""


def run_checked(program: Program, inputs: list[Tensor], tensors: list[Tensor], limit: int) -> Values:
    """Runs a program at sizes it hasn't been run at.

    Args:
        program: the program.
        inputs: one for each input.
        tensors: one for each of `program.tensors`.
        limit: most elements that the results alive at one time may have.

    Returns:
        The list of values, with what the output needs.

    Raises:
        FileError: more than the limit, found before memory is taken; or a node that can't be run.
    """
    dtype, device = setting_of(inputs, tensors)
    values = program.values(inputs, tensors)
    steps = program.steps(dtype, device)
    try:
        _run_bounded(program.graph, steps, values, min(limit, _ALLOWANCE))
    except TooLargeError:
        if limit <= _ALLOWANCE:
            raise
    else:
        return values
    meta = program.values([_to_meta(tensor) for tensor in inputs], [_to_meta(tensor) for tensor in tensors])
    with torch.no_grad():
        _run_bounded(program.graph, program.steps(dtype, torch.device("meta")), meta, limit)
    return run(program, inputs, tensors)


def run(program: Program, inputs: list[Tensor], tensors: list[Tensor]) -> Values:
    """Runs a program.

    Args:
        program: the program.
        inputs: one for each input.
        tensors: one for each of `program.tensors`.

    Returns:
        The list of values, with what the output needs.

    Raises:
        FileError: a node can't be run.
    """
    values = program.values(inputs, tensors)
    place = 0
    try:
        for step in program.steps(*setting_of(inputs, tensors)):
            place = step.place
            values[place] = step.run(values)
            for gone in step.free:
                values[gone] = None
    except Exception as error:
        raise FileError(f"{_where(program.graph, place - program.first_node)}: {first_line(error)}") from error
    return values


def setting_of(inputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[torch.dtype | None, torch.device]:
    """Returns the floating dtype and the device that a graph's constants follow.

    Args:
        inputs: what goes in.
        tensors: parameters and buffers, which decide where there are any.
    """
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
    return dtype, (tensors or inputs)[0].device


def _where(graph: Graph, index: int) -> str:
    return f"graph: node {index} ({graph.nodes[index].operator}) can't be run"


def _to_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _run_bounded(graph: Graph, steps: Sequence[Step], values: Values, limit: int) -> None:
    sizes: dict[int, int] = {}
    alive = 0
    for index, step in enumerate(steps):
        try:
            coming = step.bound(values)
            if alive + coming > limit:
                text = f"it would bring the elements in memory to {alive + coming}, more than {limit}"
                raise TooLargeError(f"{_where(graph, index)}: {text}")
            values[step.place] = step.run(values)
        except LilliputError:
            raise
        except Exception as error:
            raise FileError(f"{_where(graph, index)}: {first_line(error)}") from error
        sizes[step.place] = elements(values[step.place])
        alive += sizes[step.place]
        for gone in step.free:
            values[gone] = None
            alive -= sizes.pop(gone, 0)
