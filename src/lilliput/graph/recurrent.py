"""Recurrent layers check their arguments before torch sees them: its kernels trust the sizes, and corrupt memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

GATES = {"aten.lstm.input": 4, "aten.gru.input": 3, "aten.rnn_tanh.input": 1, "aten.rnn_relu.input": 1}
"""Rows of a weight for each unit, by operator."""


def guarded(operator: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the call of an operator, with the check in front of it if it is a recurrent layer.

    Args:
        operator: full name.
        call: the operator, or a stand-in with its arguments.
    """
    gates = GATES.get(operator)
    if gates is None:
        return call

    def checked(x: Tensor, hx: Any, params: Sequence[Tensor], *rest: Any) -> Any:
        has_biases, num_layers, _, _, bidirectional, batch_first = rest
        states = list(hx) if isinstance(hx, tuple | list) else [hx]
        if len(states) != (2 if gates == 4 else 1):
            raise ValueError(f"{len(states)} states are not what {operator} starts from")
        if x.ndim != 3 or any(state.ndim != 3 for state in states) or 0 in x.shape:
            raise ValueError(f"an input {tuple(x.shape)}, where time, batch and values, none empty, are wanted")
        wanted = _shapes(gates, (x.shape[-1], states), bool(has_biases), num_layers, 1 + bool(bidirectional), params)
        found = [tuple(tensor.shape) for tensor in (*params, *states)]
        batch = x.shape[0 if batch_first else 1]
        if found != [*wanted, *[(num_layers * (1 + bool(bidirectional)), batch, s.shape[2]) for s in states]]:
            raise ValueError(f"weights and states {found} don't fit an input {tuple(x.shape)}")
        return call(x, hx, params, *rest)

    return checked


def _shapes(
    gates: int,
    given: tuple[int, list[Tensor]],
    has_biases: bool,
    layers: int,
    directions: int,
    params: Sequence[Tensor],
) -> list[tuple[int, ...]]:
    """The shapes that the weights must have: for each layer and direction input, state, two biases, a projection."""
    width, states = given
    # What comes out of a layer; an LSTM with projections holds more units than that in its cells.
    out, units = states[0].shape[2], states[-1].shape[2]
    projected = out != units
    each = 2 + 2 * has_biases + projected
    if not (0 < layers <= len(params) and len(params) == each * layers * directions):
        raise ValueError(f"{len(params)} weights for {layers} layers in {directions} directions")
    shapes: list[tuple[int, ...]] = []
    for layer in range(layers):
        inputs = out * directions if layer else width
        one = [(gates * units, inputs), (gates * units, out), *[(gates * units,)] * (2 * has_biases)]
        shapes += (one + [(out, units)] * projected) * directions
    return shapes
