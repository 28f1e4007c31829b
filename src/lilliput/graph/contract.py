"""Rules for operators that sum over dimensions: linear layers, convolutions, products, attention, recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lilliput.graph.atoms import Label
from lilliput.graph.flow import Axes, Flow, Rule, short
from lilliput.graph.ir import Node, TensorRef

Bound = Mapping[str, Any]


def linear(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Sums over the last dimension; the weight's outputs are new."""
    x, weight, bias = (flow.of(bound[name]) for name in ("input", "weight", "bias"))
    flow.unify([x.labels[-1], weight.labels[-1]], node.operator)
    if len(weight.shape) == 1:
        return Axes(flow.result, x.labels[:-1])
    out = [weight.labels[0], *([bias.labels[0]] if isinstance(bias, Axes) else [])]
    return Axes(flow.result, (*x.labels[:-1], flow.unify(out, node.operator)))


def convolution(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Sums over the channels of each group; of several groups, whole ones go, or the same channels of each."""
    x, weight, bias = (flow.of(bound[name]) for name in ("input", "weight", "bias"))
    spatial = len(weight.shape) - 2
    channel = len(x.shape) - spatial - 1
    transposed = "transpose" in node.operator or bool(bound.get("transposed"))
    groups = int(bound["groups"])
    for label in (*x.labels[channel + 1 :], *weight.labels[2:]):
        flow.atoms.block(label, f"{short(node.operator)} slides along them")
    inputs, outputs = (weight.labels[0], weight.labels[1]) if transposed else (weight.labels[1], weight.labels[0])
    if groups == 1:
        flow.unify([x.labels[channel], inputs], node.operator)
    elif transposed:
        if weight.shape[1] > 1:
            flow.block(weight, "its convolution is transposed and grouped")
            flow.atoms.block(x.labels[channel], "the next convolution is transposed and grouped")
        outputs = flow.unify([x.labels[channel], inputs], node.operator) if weight.shape[1] == 1 else None
    elif weight.shape[1] == 1:
        # Depthwise: each input has outputs of its own. One with a single input of one group has groups == 1.
        label = x.labels[channel]
        spread = None if label is None else np.repeat(label, weight.shape[0] // groups)
        outputs = flow.unify([outputs, spread], node.operator)
    else:
        outputs = _grouped(flow, node, (x.labels[channel], inputs, outputs), groups)
    if isinstance(bias, Axes):
        outputs = flow.unify([outputs, bias.labels[0]], node.operator)
    return Axes(flow.result, (*x.labels[:channel], outputs, *(None,) * spatial))


def _grouped(flow: Flow, node: Node, labels: tuple[Label | None, ...], groups: int) -> Label | None:
    x, inputs, outputs = labels
    if x is None or inputs is None or outputs is None:
        for label in labels:
            flow.atoms.block(label, "a grouped convolution joins them with something of a fixed size")
        return outputs
    rows, columns = outputs.reshape(groups, -1), x.reshape(groups, -1)
    reason = "its convolution is grouped"
    if flow.choose(0, 2) == 0:
        flow.atoms.join(np.repeat(columns[:, :1], columns.shape[1] - 1, 1), columns[:, 1:], reason)
        flow.atoms.join(np.repeat(columns[:, :1], rows.shape[1], 1), rows, reason)
        flow.atoms.block(inputs, reason)
    else:
        flow.atoms.join(x, np.tile(inputs, groups), reason)
        flow.atoms.join(np.repeat(rows[:1], groups - 1, 0), rows[1:], reason)
    flow.note(0, 2, x)
    return outputs


def product(flow: Flow, node: Node, bound: Bound) -> Axes:
    """`matmul` and its kin, over the last dimension of one and the last but one of the other."""
    added = None
    operands = flow.operands(node)
    if short(node.operator) in ("addmm", "baddbmm", "addmv"):
        added, *operands = operands
    x, y = operands
    if min(len(x.shape), len(y.shape)) < 2:
        flow.block([x, y, added], f"{short(node.operator)} of a vector mixes them")
        return flow.fixed()  # type: ignore[no-any-return]
    shape: tuple[int, ...] = flow.result
    stack = [Axes(item.shape[:-2], item.labels[:-2]) for item in (x, y)]
    flow.unify([x.labels[-1], y.labels[-2]], node.operator)
    labels = (*flow.broadcast(stack, shape[:-2], node.operator), x.labels[-2], y.labels[-1])
    if added is not None:
        labels = flow.broadcast([Axes(shape, labels), added], shape, node.operator)
    return Axes(shape, labels)


def einsum(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Joins what has the same letter."""
    equation = str(bound["equation"]).replace(" ", "")
    tensors = [flow.of(item) for item in bound["tensors"]]
    left, arrow, right = equation.partition("->")
    words = left.split(",")
    if "..." in equation or not arrow or any(len(set(word)) < len(word) for word in words):
        flow.block(tensors, "einsum mixes them")
        return flow.fixed()  # type: ignore[no-any-return]
    labels: dict[str, Label | None] = {}
    for letter in sorted(set(left) - {","}):
        places = [(x, word.index(letter)) for word, x in zip(words, tensors) if letter in word]
        largest = max(x.shape[d] for x, d in places)
        labels[letter] = flow.unify([x.labels[d] for x, d in places if x.shape[d] == largest], node.operator)
    return Axes(flow.result, tuple(labels[letter] for letter in right))


def attention(flow: Flow, node: Node, bound: Bound) -> Axes:
    """`scaled_dot_product_attention`: heads go on their own; places mix."""
    query, key, value = (flow.of(bound[name]) for name in ("query", "key", "value"))
    shape: tuple[int, ...] = flow.result
    flow.unify([query.labels[-1], key.labels[-1]], node.operator)
    for label in (flow.unify([key.labels[-2], value.labels[-2]], node.operator), query.labels[-2]):
        flow.atoms.block(label, "attention mixes them")
    stacks = []
    for item in (query, key, value):
        labels = list(item.labels[:-2])
        sizes = list(item.shape[:-2])
        if len(sizes) > 1 and 1 < sizes[-1] < shape[-3]:
            label, times = labels[-1], shape[-3] // sizes[-1]
            labels[-1], sizes[-1] = None if label is None else np.repeat(label, times), shape[-3]
        stacks.append(Axes(tuple(sizes), tuple(labels)))
    mask = flow.of(bound.get("attn_mask"))
    if isinstance(mask, Axes):
        for label in mask.labels[-2:]:
            flow.atoms.block(label, "attention mixes them")
        stacks.append(Axes(mask.shape[:-2], mask.labels[:-2]))
    return Axes(shape, (*flow.broadcast(stacks, shape[:-2], node.operator), None, value.labels[-1]))


def embedding(flow: Flow, node: Node, bound: Bound) -> Axes:
    """Rows of a table: its columns go on."""
    weight, indices = flow.of(bound["weight"]), flow.of(bound["indices"])
    flow.atoms.block(weight.labels[0], "they are the entries of a table")
    return Axes(flow.result, (*indices.labels, *weight.labels[1:]))


def indexed(flow: Flow, node: Node, bound: Bound) -> Any:
    """`x[index]`: dimensions that are indexed can't be cut, the others go on.

    Indices that the model holds as a vector are cut like a weight: what they pick from stays whole, but not every pick
    has to stay.
    """
    x: Axes = flow.of(bound["self"])
    if short(node.operator) == "index_select":
        d = int(bound["dim"]) % len(x.shape)
        flow.atoms.block(x.labels[d], "index_select picks some of them")
        picks = _picks(flow, bound["index"])
        return Axes(flow.result, tuple(picks if place == d else label for place, label in enumerate(x.labels)))
    given = [flow.of(item) for item in bound["indices"]]
    held = [place for place, index in enumerate(given) if index is not None]
    if len(held) == 1 and len(given[held[0]].shape) == 1:
        flow.atoms.block(x.labels[held[0]], "an index picks some of them")
        picks = _picks(flow, bound["indices"][held[0]])
        return Axes(flow.result, tuple(picks if place == held[0] else label for place, label in enumerate(x.labels)))
    for index, label in zip(given, x.labels):
        if index is not None:
            flow.block(index, "they are indices")
            flow.atoms.block(label, "an index picks some of them")
    places = [d for d, index in enumerate(given) if index is not None]
    rest = [label for d, label in enumerate(x.labels) if d not in places]
    count = len(flow.result) - len(rest)
    begin = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    return Axes(flow.result, (*rest[:begin], *(None,) * count, *rest[begin:]))


def _picks(flow: Flow, index: Any) -> Label | None:
    """The label of a vector of indices that is a tensor of the model; None, and blocked, if it is computed."""
    axes = flow.of(index)
    if isinstance(index, TensorRef) and axes.labels:
        return axes.labels[0]  # type: ignore[no-any-return]
    flow.block(axes, "they are indices")
    return None


def recurrent(flow: Flow, node: Node, bound: Bound) -> list[Axes]:
    """LSTM, GRU and plain recurrent layers: a unit goes from all gates, layers and directions at once."""
    x = flow.of(bound["input"])
    state = bound["hx"] if isinstance(bound["hx"], tuple) else (bound["hx"],)
    states = [flow.of(item) for item in state]
    params = [flow.of(item) for item in bound["params"]]
    both, layers = bool(bound["bidirectional"]), int(bound["num_layers"])
    each = 4 if bound["has_biases"] else 2
    units = states[0].shape[-1]
    if len(params) != each * layers * (1 + both) or params[1].shape[1] != units:
        flow.block([x, *params, *states], "a recurrent layer with projections mixes them")
        return flow.fixed()  # type: ignore[no-any-return]
    parts = [item.labels[-1] for item in states]
    below = x.labels[-1]
    for place in range(0, len(params), each):
        w_ih, w_hh, *biases = params[place : place + each]
        if place % (each * (1 + both)) == 0 and place:
            below = parts[0] if not both or parts[0] is None else np.tile(parts[0], 2)
        flow.unify([below, w_ih.labels[1]], node.operator)
        gates = [label for item in (w_ih, w_hh, *biases) for label in _gates(item.labels[0], units)]
        parts[0] = flow.unify([*parts, w_hh.labels[1], *gates], node.operator)
    out = parts[0] if not both or parts[0] is None else np.tile(parts[0], 2)
    for item in states:
        for label in item.labels[:-1]:
            flow.atoms.block(label, "they are layers or examples")
    first = Axes(flow.result[0], (*x.labels[:-1], out))
    return [first, *[Axes(shape, (*(None,) * (len(shape) - 1), parts[0])) for shape in flow.result[1:]]]


def _gates(label: Label | None, units: int) -> list[Label | None]:
    return [None] if label is None else list(label.reshape(-1, units))


def rule_table() -> dict[str, Rule]:
    """Returns the rules by operator name, without overload."""
    words: dict[Rule, str] = {
        linear: "linear",
        convolution: """
            conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d
            """,
        product: "matmul mm bmm addmm baddbmm",
        einsum: "einsum",
        attention: "scaled_dot_product_attention",
        embedding: "embedding",
        indexed: "index index_select",
        recurrent: "lstm gru rnn_tanh rnn_relu",
    }
    return {name: rule for rule, names in words.items() for name in names.split()}
