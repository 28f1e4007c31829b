"""QONNX: ONNX in which weights and activations of any number of bits are told by nodes of their own, for FPGA flows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from lilliput.core.packed import Packed, unpack
from lilliput.export.onnx import finished
from lilliput.export.quantized import Levels, levels_in, signs_of
from lilliput.export.sizes import closed, infos_of
from lilliput.export.steps import weight_of
from lilliput.export.writer import Writer
from lilliput.graph.ir import Graph, Ref, TensorRef
from lilliput.graph.layers import layer_of

DOMAIN = "qonnx.custom_op.general"
F = np.float32


@dataclass(frozen=True, eq=False)
class Quant:
    """What a node `Quant` says: (clip(round(x / scale) + zero, lowest, highest) - zero) scale; or `BipolarQuant`.

    Attributes:
        scale: float32, broadcast to x.
        zero: float32, broadcast to x.
        bits: of a code; 0: the node is `BipolarQuant`, sign(x) scale with sign(0) = 1.
        signed: codes are signed.
        narrow: one code less: the lowest of signed ones, the highest of others.
    """

    scale: np.ndarray[Any, Any]
    zero: np.ndarray[Any, Any]
    bits: int
    signed: bool = True
    narrow: bool = False

    def __call__(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Computes what the node does."""
        if not self.bits:
            return np.asarray(np.where(x >= 0, F(1), F(-1)) * self.scale)
        codes = np.clip(np.rint(x / self.scale + self.zero), *ends(self.bits, self.signed, self.narrow))
        return np.asarray((codes.astype(F) - self.zero) * self.scale)


@dataclass(frozen=True)
class Signs:
    """Activations that become their signs."""

    source: Ref


def ends(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """The lowest and the highest code.

    >>> ends(4, True, True), ends(4, False, False)
    ((-7, 7), (0, 15))
    """
    if signed:
        return narrow - 2 ** (bits - 1), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


def fewest(low: int, high: int) -> tuple[int, bool, bool]:
    """The fewest bits that hold codes from `low` to `high`: bits, signed, narrow.

    >>> fewest(-1, 1), fewest(-8, 7), fewest(0, 200)
    ((2, True, True), (4, True, False), (8, False, False))
    """
    if low >= 0:
        return max(int(high).bit_length(), 1), False, False
    bits = max(int(-low - 1).bit_length(), int(high).bit_length()) + 1
    narrow = low > -(2 ** (bits - 1))
    return bits, True, narrow


def to_qonnx(graph: Graph, tensors: Mapping[str, Tensor], packed: Mapping[str, Packed | Tensor]) -> onnx.ModelProto:
    """Translates a graph for one example: FPGA flows want fixed sizes.

    Weights are floats on their levels behind a node `Quant` (signs: `BipolarQuant`) that says which levels, as
    Brevitas writes them; weights that have no levels with one scale, or one a row, stay plain floats.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        packed: its weights as an artifact holds them, by name.

    Raises:
        ModelError: an operator has no counterpart.
    """
    fixed = closed(graph, tensors)
    layers = [layer_of(node) for node in fixed.nodes]
    quants = {one.weight: quant_of(packed.get(one.weight), tensors[one.weight]) for one in layers if one is not None}
    levels: dict[int, Any] = dict(levels_in(fixed, 2**16))
    for index in range(len(fixed.nodes)):
        source = signs_of(fixed, index)
        if source is not None:
            levels[index] = Signs(source)
    writer = QuantWriter(fixed, tensors, infos_of(fixed, tensors))
    writer.quants = {name: quant for name, quant in quants.items() if quant is not None}
    return finished(writer, levels, DOMAIN)


class QuantWriter(Writer):
    """Writes levels as nodes of QONNX's domain."""

    quants: Mapping[str, Quant]

    def put(self, levels: Any) -> None:
        """Puts a tensor on levels: the result of the present node.

        Args:
            levels: `Levels` or `Signs`.
        """
        source = self.x(levels.source)
        if isinstance(levels, Levels):
            bits, signed, narrow = fewest(levels.low, levels.high)
            if ends(bits, signed, narrow) != (levels.low, levels.high):
                limits = [F((end - levels.zero) * levels.scale) for end in (levels.low, levels.high)]
                source = self("Clip", source, *(self.constant(limit, torch.float32) for limit in limits))
            quant = Quant(np.array(levels.scale, F), np.array(levels.zero, F), bits, signed, narrow)
        else:
            quant = Quant(np.ones((), F), np.zeros((), F), 0)
        self.values.append(self.node(source, quant))

    def node(self, source: str, quant: Quant) -> str:
        """Returns a tensor on levels.

        Args:
            source: its name.
            quant: which levels.
        """
        scale = self.constant(quant.scale)
        if not quant.bits:
            return str(self("BipolarQuant", source, scale, domain=DOMAIN))
        told = self.constant(quant.zero), self.constant(float(quant.bits), torch.float32)
        signed, narrow = int(quant.signed), int(quant.narrow)
        return str(
            self("Quant", source, scale, *told, domain=DOMAIN, signed=signed, narrow=narrow, rounding_mode="ROUND")
        )

    def x(self, ref: Any) -> str:
        """Returns the name of the tensor that a reference stands for."""
        name = super().x(ref)
        if not isinstance(ref, TensorRef) or ref.name not in self.quants:
            return name
        return self.node(name, self.quants[ref.name])


def quant_of(packed: Packed | Tensor | None, tensor: Tensor) -> Quant | None:
    """Finds the levels of a weight; None if it has none with one scale, or one a row.

    Args:
        packed: as the artifact holds it.
        tensor: unpacked.

    >>> from lilliput.quantize.ternary import Ternary
    >>> weight = torch.tensor([[0.5, -0.6], [0.01, 0.2]])
    >>> packed = Ternary().pack(weight)
    >>> quant_of(packed, unpack(packed)).bits
    2
    """
    if not isinstance(packed, Packed) or tensor.dtype != torch.float32 or tensor.ndim < 2:
        return None
    parts = packed.parts
    plain = packed.method == "quantize/uniform" and packed.settings.get("per") in ("tensor", "row")
    if plain and "levels" not in parts:
        codes = unpack(parts["codes"]).numpy().astype(np.int64)
        zero = unpack(parts["zero"]).numpy().astype(np.int64) if "zero" in parts else np.zeros(1, np.int64)
        scale = unpack(parts["scale"]).float().numpy()
    else:
        whole = weight_of(packed, tensor)
        if whole.scale is None:
            return None
        codes, zero, scale = whole.values, np.zeros(1, np.int64), whole.scale
    sides = (-1,) + (1,) * (tensor.ndim - 1)
    # A row of zeros may have a scale of 0, by which nothing can be divided.
    scale = np.where(scale == 0, F(1), scale).astype(F).reshape(sides)
    low, high = (int(end) for end in (min(codes.min(), zero.min()), max(codes.max(), zero.max())))
    affine = "zero" in parts and plain
    form = fewest(low, high) if affine else fewest(min(low, -high), high)
    quant = Quant(scale, zero.astype(F).reshape(sides), *form)
    if not affine and set(np.unique(codes).tolist()) <= {-1, 1}:
        quant = Quant(scale, np.zeros((), F), 0)
    values = tensor.detach().numpy()
    return quant if np.array_equal(quant(values), values) else None
