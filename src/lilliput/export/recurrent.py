"""LSTM and GRU: ONNX has the gates in another order, and both biases in one."""

from __future__ import annotations

from typing import Any

import numpy as np

from lilliput.export.rules import Unsupported
from lilliput.export.writer import Arguments, Rule, Writer, array_of, numpy_dtype, rule
from lilliput.graph.ir import TensorRef

# Where torch has each of ONNX's gates: i, o, f, c of i, f, g, o; and z, r, h of r, z, n.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}


def _recurrent(operator: str) -> Rule:
    def run(w: Writer, a: Arguments) -> Any:
        states = a["hx"] if isinstance(a["hx"], tuple) else (a["hx"],)
        both = 2 if a["bidirectional"] else 1
        each = 4 if a["has_biases"] else 2
        if len(a["params"]) != each * both * a["num_layers"]:
            raise Unsupported("projections")
        source = w.x(a["input"])
        if w.rank(a["input"]) != 3:
            raise Unsupported("an input without a batch")
        source = w("Transpose", source, perm=[1, 0, 2]) if a["batch_first"] else source
        ends: list[list[str]] = [[] for _ in states]
        for layer in range(a["num_layers"]):
            source, last = _layer(w, operator, a, (layer, both, each), source)
            for held, name in zip(ends, last):
                held.append(name)
        found = [w("Concat", *names, axis=0) if len(names) > 1 else names[0] for names in ends]
        return [w("Transpose", source, perm=[1, 0, 2]) if a["batch_first"] else source, *found]

    return run


def _layer(w: Writer, operator: str, a: Arguments, place: tuple[int, int, int], source: str) -> tuple[str, list[str]]:
    """One layer: its outputs (T, N, directions * H) and last states."""
    layer, both, each = place
    params = [
        a["params"][(layer * both + direction) * each : (layer * both + direction + 1) * each]
        for direction in range(both)
    ]
    arrays = [[_array(w, ref) for ref in own] for own in params]
    order, hidden = _GATES[operator], arrays[0][1].shape[1]
    weights = [w.constant(np.stack([_turned(own[i], order, hidden) for own in arrays])) for i in (0, 1)]
    kind = numpy_dtype(w.info(params[0][0]).dtype)
    bias = [
        np.concatenate([_turned(own[i], order, hidden) for i in (2, 3)])
        if each == 4
        else np.zeros(2 * len(own[0]), kind)
        for own in arrays
    ]
    states = a["hx"] if isinstance(a["hx"], tuple) else (a["hx"],)
    starts = [
        w("Slice", w.x(state), w.constant([layer * both]), w.constant([(layer + 1) * both]), w.constant([0]))
        for state in states
    ]
    extra = {"linear_before_reset": 1} if operator == "GRU" else {}
    direction = "bidirectional" if both == 2 else "forward"
    found = w(operator, source, *weights, w.constant(np.stack(bias)), "", *starts, outputs=1 + len(states),
              hidden_size=hidden, direction=direction, **extra)  # fmt: skip
    # (T, directions, N, H) -> (T, N, directions * H)
    moved = w("Reshape", w("Transpose", found[0], perm=[0, 2, 1, 3]), w.constant([0, 0, both * hidden]))
    return moved, found[1:]


def _array(w: Writer, ref: Any) -> np.ndarray[Any, Any]:
    if not isinstance(ref, TensorRef):
        raise Unsupported("weights that are computed")
    return array_of(w.tensors[ref.name])


def _turned(array: np.ndarray[Any, Any], order: tuple[int, ...], hidden: int) -> np.ndarray[Any, Any]:
    return np.concatenate([array[gate * hidden : (gate + 1) * hidden] for gate in order])


rule("lstm.input")(_recurrent("LSTM"))
rule("gru.input")(_recurrent("GRU"))
