"""Weights of linear layers in 2, 4 or 8 bits, as ONNX Runtime's operator MatMulNBits takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lilliput.core.packed import Packed, unpack
from lilliput.graph.ir import Graph
from lilliput.graph.layers import LINEAR, layer_of
from lilliput.graph.shapes import users_of

BLOCK = 128
"""Weights that share a scale where a whole row does: a row is that many blocks of one scale."""
FLOATS, INTEGERS = 1, 4
"""Arithmetic of the operator: floats, or inputs put on 8-bit levels, block by block, while it runs."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Few:
    """A weight: (codes - zero) scale, in blocks within rows; the last block of a row is filled up with zeros.

    Attributes:
        bits: of a code, 2, 4 or 8.
        block: weights that share a scale, 16 to 256, a power of two.
        inputs: weights of a row.
        codes: (rows, blocks, bytes), uint8, the first code in the lowest bits.
        scale: (rows, blocks), float32.
        zero: (rows, bytes), uint8, packed like codes; None where all zero points are 2^(bits - 1).
    """

    bits: int
    block: int
    inputs: int
    codes: Array
    scale: Array
    zero: Array | None


def few_of(packed: Packed | Tensor | None) -> Few | None:
    """Reads a matrix of `quantize/uniform` as codes of 2, 4 or 8 bits, exactly.

    Args:
        packed: any weight of an artifact.

    Returns:
        The fewest bits that hold its codes; None for other weights, and for groups that no block divides.

    >>> from lilliput.quantize.uniform import Uniform
    >>> few = few_of(Uniform(bits=4, per="group", group=32).pack(torch.randn(8, 64)))
    >>> few.bits, few.block, few.codes.shape, few.scale.shape
    (4, 32, (8, 2, 16), (8, 2))
    """
    if not isinstance(packed, Packed) or packed.method != "quantize/uniform" or packed.dtype != torch.float32:
        return None
    if len(packed.shape) != 2 or "levels" in packed.parts or 0 in packed.shape:
        return None
    rows, inputs = packed.shape
    codes, scale = (unpack(packed.parts[name]) for name in ("codes", "scale"))
    group = int(packed.settings.get("group") or inputs) if packed.settings.get("per") == "group" else inputs
    block = _block(group, inputs)
    if block is None or codes.dtype not in (torch.int8, torch.uint8) or scale.dtype != torch.float32:
        return None
    values = codes.reshape(rows, inputs).numpy().astype(np.int16)
    shifts = None
    if "zero" in packed.parts:
        shifts = _spread(unpack(packed.parts["zero"]).numpy(), (rows, inputs, group, block)).astype(np.int16)
    bits = _bits(values, shifts)
    middle = 0 if shifts is not None else 1 << (bits - 1)
    blocks = -(-inputs // block)
    wide = np.zeros((rows, blocks * block), np.int16)
    wide[:, :inputs] = values + middle
    if blocks * block != inputs:
        wide[:, inputs:] = middle if shifts is None else shifts[:, -1:]
    steps = np.ascontiguousarray(_spread(scale.numpy(), (rows, inputs, group, block)).astype(np.float32))
    zero = None if shifts is None else _packed(shifts, bits)
    return Few(bits, block, inputs, _packed(wide.reshape(rows, blocks, block), bits), steps, zero)


def few_layers(graph: Graph, packed: Mapping[str, Any], coded: Mapping[str, Any], level: int) -> dict[str, Few]:
    """Finds the weights that can stay in few bits: those that only linear layers use.

    With floats ONNX Runtime 1.32 is fast for 4 bits alone: 8 and 2 took 30 times as long as a matrix of floats.

    Args:
        graph: any graph.
        packed: weights by name.
        coded: weights that stay in 8 bits beside 8-bit inputs.
        level: `FLOATS` or `INTEGERS`.
    """
    _, of_tensors = users_of(graph)
    found = {}
    for name, places in of_tensors.items():
        layers = [layer_of(graph.nodes[place]) if place < len(graph.nodes) else None for place in places]
        if name in coded or any(one is None or one.kind != "linear" or one.weight != name for one in layers):
            continue
        few = few_of(packed.get(name)) if all(graph.nodes[p].operator == LINEAR for p in places) else None
        if few is not None and (level != FLOATS or few.bits == 4):
            found[name] = few
    return found


def _block(group: int, inputs: int) -> int | None:
    """Weights of a block: a power of two that divides a group, or any where a row is one group."""
    if group == inputs:
        return BLOCK if inputs > BLOCK // 2 else next(size for size in (16, 32, 64) if size >= min(inputs, 64))
    found = min(group & -group, 256)
    return found if found >= 16 else None


def _bits(values: Array, shifts: Array | None) -> int:
    """The fewest bits that hold codes and zero points; without these a code c is c + 2^(bits - 1)."""
    for bits in (2, 4):
        if shifts is None and -(1 << (bits - 1)) <= values.min() and values.max() < 1 << (bits - 1):
            return bits
        if shifts is not None and max(values.max(), shifts.max()) < 1 << bits:
            return bits
    return 8


def _spread(values: Array, sizes: tuple[int, int, int, int]) -> Array:
    """One number for each block, from one for each group, row or the whole."""
    rows, inputs, group, block = sizes
    blocks = -(-inputs // block)
    if values.size <= rows and group == inputs:
        return np.broadcast_to(values.reshape(-1, 1), (rows, blocks))
    found: Array = values.reshape(rows, inputs // group).repeat(group // block, 1)
    return found


def _packed(values: Array, bits: int) -> Array:
    """Codes along the last axis in bytes, the first in the lowest bits."""
    each = 8 // bits
    padded = np.pad(values.astype(np.uint8), [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % each)])
    parts = padded.reshape(*values.shape[:-1], -1, each)
    found: Array = np.bitwise_or.reduce(parts << (np.arange(each, dtype=np.uint8) * bits), -1).astype(np.uint8)
    return found
