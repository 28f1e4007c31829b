"""How large a graph's results would be, found on the meta device before memory is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lilliput.core.errors import FileError

if TYPE_CHECKING:
    from lilliput.graph.program import Step

MOST_ELEMENTS = 2**31


def check_sizes(names: list[str], values: list[Any], steps: Iterable[Step], limit: int) -> None:
    """Runs a program on the meta device and adds up what would be alive.

    Views count as if they were copies: an expanded tensor is a copy waiting to happen.

    Args:
        names: the operator of each step, for messages.
        values: inputs and tensors on the meta device, with room for the results.
        steps: compiled for the meta device.
        limit: most elements that results may have together at any time.

    Raises:
        FileError: more than the limit, or shapes that an operator doesn't take.
    """
    alive: dict[int, int] = {}
    total = 0
    for index, step in enumerate(steps):
        where = f"graph: node {index} ({names[index]})"
        try:
            result = step.run(values)
        except Exception as error:
            raise FileError(f"{where} can't be run: {first_line(error)}") from None
        values[step.place] = result
        alive[step.place] = _elements(result)
        total += alive[step.place]
        if total > limit:
            raise FileError(f"{where} brings the elements in memory to {total}, more than the limit of {limit}")
        for place in step.free:
            values[place] = None
            total -= alive.pop(place, 0)


def to_meta(tensor: Tensor) -> Tensor:
    """Returns a tensor of the same shape, strides and dtype without memory.

    Args:
        tensor: any.
    """
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _elements(result: Any) -> int:
    if isinstance(result, Tensor):
        return result.numel()
    return sum(map(_elements, result)) if isinstance(result, tuple | list) else 0


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, at most 200 characters.

    Args:
        error: any.
    """
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


_SAME_SHAPE = (
    "relu",
    "relu6",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "silu",
    "gelu",
    "mish",
    "elu",
    "leaky_relu",
    "sigmoid",
    "tanh",
    "clamp",
    "softplus",
    "layer_norm",
)


@cache
def shape_functions() -> dict[str, Callable[..., Any]]:
    """Returns stand-ins for common operators that take milliseconds on the meta device, or loop over time there."""
    same = dict.fromkeys((f"aten.{name}.default" for name in _SAME_SHAPE), _same)
    return same | {
        "aten.softmax.int": _same,
        "aten.batch_norm.default": _batch_norm,
        "aten.linear.default": _linear,
        "aten.lstm.input": _lstm,
        "aten.gru.input": _recurrent,
        "aten.rnn_tanh.input": _recurrent,
        "aten.rnn_relu.input": _recurrent,
    }


def _same(x: Tensor, *rest: Any, **named: Any) -> Tensor:
    return x


def _batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Tensor:
    if x.dim() < 2 or any(part is not None and part.shape != x.shape[1:2] for part in (weight, bias, *rest[:2])):
        raise ValueError("a BatchNorm's channels don't fit its input")
    return x


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"a weight of {tuple(weight.shape)} doesn't fit an input of {tuple(x.shape)}")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _lstm(
    x: Tensor, hx: list[Tensor], params: list[Tensor], biases: bool, layers: int, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, cell = hx
    _check_recurrent(x, params, biases, layers, rest[2])
    return _sequence(x, hidden.shape[-1], rest), hidden.clone(), cell.clone()


def _recurrent(
    x: Tensor, hx: Tensor, params: list[Tensor], biases: bool, layers: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    _check_recurrent(x, params, biases, layers, rest[2])
    return _sequence(x, hx.shape[-1], rest), hx.clone()


def _sequence(x: Tensor, hidden: int, rest: tuple[Any, ...]) -> Tensor:
    return x.new_empty((*x.shape[:-1], hidden * (2 if rest[2] else 1)))


def _check_recurrent(x: Tensor, params: list[Tensor], biases: bool, layers: int, bidirectional: bool) -> None:
    # Projections (LSTM's proj_size) add one matrix to each direction.
    directions = layers * (2 if bidirectional else 1)
    if len(params) not in (directions * (4 if biases else 2), directions * (5 if biases else 3)):
        raise ValueError("a recurrent layer has the wrong number of weights")
    if x.dim() not in (2, 3) or params[0].dim() != 2 or params[0].shape[1] != x.shape[-1]:
        raise ValueError("a recurrent layer's input doesn't fit its weights")
