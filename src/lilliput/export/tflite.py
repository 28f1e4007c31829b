"""The file format of LiteRT (TensorFlow Lite): a flatbuffer, written by hand from its public schema, version 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lilliput.core.errors import NotInstalled

try:
    import flatbuffers
except ImportError:
    raise NotInstalled("LiteRT's files need the package flatbuffers: pip install 'lilliput[litert]'") from None

Array = np.ndarray[Any, Any]

# Numbers of the schema.
TYPES = {"float32": 0, "int32": 2, "uint8": 3, "int64": 4, "bool": 6, "int8": 9}
OPERATORS = {
    "ADD": 0, "AVERAGE_POOL_2D": 1, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 4, "DEQUANTIZE": 6,
    "FULLY_CONNECTED": 9, "LOGISTIC": 14, "MAX_POOL_2D": 17, "MUL": 18, "RELU": 19, "RELU6": 21, "RESHAPE": 22,
    "SOFTMAX": 25, "TANH": 28, "PAD": 34, "GATHER": 36, "TRANSPOSE": 39, "MEAN": 40, "SUB": 41, "DIV": 42,
    "STRIDED_SLICE": 45, "EXP": 47, "MAXIMUM": 55, "MINIMUM": 57, "NEG": 59, "PADV2": 60, "SUM": 74, "SQRT": 75,
    "RSQRT": 76, "LEAKY_RELU": 98, "ABS": 101, "ELU": 111, "QUANTIZE": 114, "HARD_SWISH": 117, "BATCH_MATMUL": 126,
    "GELU": 150,
}  # fmt: skip
# Version of an operator that takes 8 bits; others are 1.
VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 5, "ADD": 2, "MAX_POOL_2D": 2, "MEAN": 2, "PAD": 2,
    "PADV2": 2, "RELU": 2, "RELU6": 2, "TRANSPOSE": 2, "DEQUANTIZE": 5, "AVERAGE_POOL_2D": 2, "CONCATENATION": 2,
}  # fmt: skip
# Options: number of the table, then the place and the kind of each field.
OPTIONS: Mapping[str, tuple[int, Mapping[str, tuple[int, str]]]] = {
    "CONV_2D": (1, {"padding": (0, "Int8"), "stride_w": (1, "Int32"), "stride_h": (2, "Int32"), "act": (3, "Int8"),
                    "dilation_w": (4, "Int32"), "dilation_h": (5, "Int32")}),
    "DEPTHWISE_CONV_2D": (2, {"padding": (0, "Int8"), "stride_w": (1, "Int32"), "stride_h": (2, "Int32"),
                              "multiplier": (3, "Int32"), "act": (4, "Int8"), "dilation_w": (5, "Int32"),
                              "dilation_h": (6, "Int32")}),
    "MAX_POOL_2D": (5, {"padding": (0, "Int8"), "stride_w": (1, "Int32"), "stride_h": (2, "Int32"),
                        "filter_w": (3, "Int32"), "filter_h": (4, "Int32"), "act": (5, "Int8")}),
    "FULLY_CONNECTED": (8, {"act": (0, "Int8"), "keep": (2, "Bool")}),
    "SOFTMAX": (9, {"beta": (0, "Float32")}),
    "CONCATENATION": (10, {"axis": (0, "Int32"), "act": (1, "Int8")}),
    "ADD": (11, {"act": (0, "Int8")}), "MUL": (21, {"act": (0, "Int8")}), "SUB": (28, {"act": (0, "Int8")}),
    "DIV": (29, {"act": (0, "Int8")}), "MEAN": (27, {"keep": (0, "Bool")}), "SUM": (27, {"keep": (0, "Bool")}),
    "STRIDED_SLICE": (32, {"begin": (0, "Int32"), "end": (1, "Int32"), "shrink": (4, "Int32")}),
    "GATHER": (23, {"axis": (0, "Int32")}), "LEAKY_RELU": (75, {"alpha": (0, "Float32")}),
    "BATCH_MATMUL": (101, {"x": (0, "Bool"), "y": (1, "Bool")}), "GELU": (116, {"approximate": (0, "Bool")}),
    "RESHAPE": (17, {}), "PAD": (22, {}), "PADV2": (43, {}), "TRANSPOSE": (26, {}), "EXP": (33, {}),
    "MAXIMUM": (39, {}), "MINIMUM": (39, {}), "HARD_SWISH": (91, {}), "QUANTIZE": (89, {}), "DEQUANTIZE": (38, {}),
}  # fmt: skip
OPTIONS = {**OPTIONS, "AVERAGE_POOL_2D": OPTIONS["MAX_POOL_2D"]}


@dataclass(frozen=True, eq=False)
class Scales:
    """What the codes of a tensor mean: (code - zero) scale.

    Attributes:
        scale: float32, one or one for each index of an axis.
        zero: a code; of all.
        axis: which, if there are several scales.
    """

    scale: Any
    zero: int = 0
    axis: int = 0


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor of the file: its name, shape, dtype; `data` of a constant; `scales` of codes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Array | None = None
    scales: Scales | None = None


@dataclass(frozen=True, eq=False)
class Operation:
    """An operator with the places of its tensors (-1: left out) and its options."""

    operator: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


def file_of(
    tensors: Sequence[Entry], operations: Sequence[Operation], inputs: Sequence[int], outputs: Sequence[int]
) -> bytes:
    """Returns the bytes of a file of one graph.

    Args:
        tensors: all.
        operations: in order.
        inputs: places of tensors.
        outputs: places of tensors.

    >>> x = Entry("x", (1, 2), "float32")
    >>> data = file_of([x, Entry("y", (1, 2), "float32")], [Operation("RELU", (0,), (1,))], [0], [1])
    >>> data[4:8]
    b'TFL3'
    """
    size = sum(entry.data.nbytes for entry in tensors if entry.data is not None)
    b = flatbuffers.Builder(size + 1024 * (len(tensors) + len(operations) + 8))
    # Buffer 0 is the empty one, by the schema.
    held = [entry.data for entry in tensors if entry.data is not None]
    buffers = [_table(b, [])] + [_table(b, [(0, "UOffsetTRelative", _bytes(b, data))]) for data in held]
    places = iter(range(1, len(buffers)))
    entries = [_entry(b, entry, next(places) if entry.data is not None else 0) for entry in tensors]
    kinds = list(dict.fromkeys((one.operator, one.version) for one in operations))
    codes = [
        _table(b, [(0, "Int8", min(OPERATORS[name], 127)), (2, "Int32", version), (3, "Int32", OPERATORS[name])])
        for name, version in kinds
    ]
    written = [_operation(b, one, kinds.index((one.operator, one.version))) for one in operations]
    graph = _table(
        b,
        [
            (0, "UOffsetTRelative", _offsets(b, entries)),
            (1, "UOffsetTRelative", b.CreateNumpyVector(np.array(inputs, np.int32))),
            (2, "UOffsetTRelative", b.CreateNumpyVector(np.array(outputs, np.int32))),
            (3, "UOffsetTRelative", _offsets(b, written)),
            (4, "UOffsetTRelative", b.CreateString("main")),
        ],
    )
    model = [
        (0, "Uint32", 3),
        (1, "UOffsetTRelative", _offsets(b, codes)),
        (2, "UOffsetTRelative", _offsets(b, [graph])),
        (3, "UOffsetTRelative", b.CreateString("lilliput")),
        (4, "UOffsetTRelative", _offsets(b, buffers)),
        (7, "UOffsetTRelative", _offsets(b, [_signature(b, tensors, inputs, outputs)])),
    ]
    b.Finish(_table(b, model), file_identifier=b"TFL3")
    return bytes(b.Output())


def _signature(b: Any, tensors: Sequence[Entry], inputs: Sequence[int], outputs: Sequence[int]) -> int:
    """By which names the graph is called: those of the inputs, and `output_0`, ..."""
    ins = [(tensors[place].name, place) for place in inputs]
    outs = [(f"output_{number}", place) for number, place in enumerate(outputs)]
    maps = [
        [_table(b, [(0, "UOffsetTRelative", b.CreateString(name)), (1, "Uint32", place)]) for name, place in side]
        for side in (ins, outs)
    ]
    fields = [(number, "UOffsetTRelative", _offsets(b, side)) for number, side in enumerate(maps)]
    return _table(b, [*fields, (2, "UOffsetTRelative", b.CreateString("serving_default"))])


def _table(b: Any, fields: Sequence[tuple[int, str, Any]]) -> int:
    """A table: place, kind and value of each field that is there."""
    b.StartObject(max((place for place, _, _ in fields), default=-1) + 1)
    for place, kind, value in fields:
        getattr(b, f"Prepend{kind}")(value)
        b.Slot(place)
    return int(b.EndObject())


def _offsets(b: Any, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


def _bytes(b: Any, data: Array) -> int:
    """The bytes of a constant, on a multiple of 16 as the schema asks."""
    raw = np.ascontiguousarray(data).tobytes()
    b.StartVector(1, len(raw), 16)
    b.head -= len(raw)
    b.Bytes[b.head : b.head + len(raw)] = raw
    return int(b.EndVector())


def _entry(b: Any, entry: Entry, buffer: int) -> int:
    fields = [
        (0, "UOffsetTRelative", b.CreateNumpyVector(np.array(entry.shape, np.int32))),
        (1, "Int8", TYPES[entry.dtype]),
        (2, "Uint32", buffer),
        (3, "UOffsetTRelative", b.CreateString(entry.name)),
    ]
    if entry.scales is not None:
        scale = np.atleast_1d(np.asarray(entry.scales.scale, np.float32))
        zeros = np.full(len(scale), entry.scales.zero, np.int64)
        told = [
            (2, "UOffsetTRelative", b.CreateNumpyVector(scale)),
            (3, "UOffsetTRelative", b.CreateNumpyVector(zeros)),
            (6, "Int32", entry.scales.axis),
        ]
        fields.append((4, "UOffsetTRelative", _table(b, told)))
    return _table(b, [*fields, (8, "Bool", True)])


def _operation(b: Any, one: Operation, code: int) -> int:
    fields = [
        (0, "Uint32", code),
        (1, "UOffsetTRelative", b.CreateNumpyVector(np.array(one.inputs, np.int32))),
        (2, "UOffsetTRelative", b.CreateNumpyVector(np.array(one.outputs, np.int32))),
    ]
    if one.operator in OPTIONS:
        number, known = OPTIONS[one.operator]
        told = _table(b, [(*known[name], value) for name, value in one.options.items()])
        fields += [(3, "Uint8", number), (4, "UOffsetTRelative", told)]
    return _table(b, fields)
