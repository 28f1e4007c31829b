"""The manifest of a file that may come from a stranger: every entry checked before a tensor is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lilliput.core.activations import Quantized, check_numbers
from lilliput.core.cut import Cut, Resize, Skip
from lilliput.core.errors import FileError
from lilliput.core.recipe import Absent, step_of
from lilliput.file import layout
from lilliput.file.header import Range
from lilliput.file.leaf import Leaf
from lilliput.file.manifest import is_setting
from lilliput.file.message import one_line

_KEYS = frozenset("wcarkfgzqb")
_PACKED_KEYS = frozenset("msdxp")


@dataclass(frozen=True)
class Node:
    """A packed weight whose tensors are still leaves; see `Packed`."""

    method: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Mapping[str, Node | int]
    settings: Mapping[str, Any]


@dataclass
class Entries:
    """Reads the entries of weights and constants, and counts what they will take.

    Attributes:
        ranges: the file's tensors by name, but for manifest and streams.
        max_bytes: cap on the bytes of decoded tensors, and on those of unpacked weights.
        leaves: all leaves, in order; a `Node` refers to them by number.
        decoded: bytes that the leaves take once decoded.
        unpacked: bytes that the packed weights take once unpacked.
        elements: elements of the leaves.
        stream: bytes of the streams that the leaves so far take.
    """

    ranges: Mapping[str, Range]
    max_bytes: int
    leaves: list[Leaf] = field(default_factory=list)
    decoded: int = 0
    unpacked: int = 0
    elements: int = 0
    stream: int = 0
    _named: set[str] = field(default_factory=set)

    def table(self, data: object, what: str) -> dict[str, Node | int]:
        """Reads the weights, or the constants."""
        if not isinstance(data, dict):
            raise FileError(f"manifest: {what} must be an object")
        return {layout.check_name(name): self._entry(name, "", entry, 0) for name, entry in data.items()}

    def finish(self, streams: int) -> None:
        """Checks that every byte of the streams and every tensor of the header has been spoken of."""
        if self.stream != streams:
            raise FileError(f"manifest: describes {self.stream} bytes of coded streams, the file holds {streams}")
        if unused := self.ranges.keys() - self._named:
            raise FileError(f"header: tensor {min(unused)[:80]!a} is not in the manifest")

    def _entry(self, owner: str, part: str, entry: object, depth: int) -> Node | int:
        what = f"{owner}/{part}" if part else owner
        if isinstance(entry, list):
            return self._leaf(owner, part, entry, what)
        if not isinstance(entry, dict) or not {"m", "s", "p"} <= entry.keys() <= _PACKED_KEYS:
            raise FileError(f"manifest: {what}: neither a tensor nor a packed weight")
        method, parts, settings = entry["m"], entry["p"], entry.get("x", {})
        if not isinstance(method, str) or not layout.METHOD.fullmatch(method):
            raise FileError(f"manifest: {what}: {str(method)[:80]!a} is no path of a weight method")
        for table in (parts, settings):
            if not isinstance(table, dict) or len(table) > layout.MAX_PARTS or depth >= layout.MAX_PACKED_DEPTH:
                raise FileError(f"manifest: {what}: too many parts or settings, or packed too many times over")
            if not all(layout.PART.fullmatch(name) for name in table):
                raise FileError(f"manifest: {what}: a part or setting has a name that none can have")
        if not all(is_setting(value) for value in settings.values()):
            raise FileError(f"manifest: {what}: a setting is no finite number, truth value or short string")
        shape = layout.check_shape(entry["s"], what)
        dtype = layout.dtype_of(entry.get("d", "F32"), what)
        if not dtype.is_floating_point:
            raise FileError(f"manifest: {what}: a packed weight is floating-point, not {dtype}")
        self.unpacked += self._counted(shape, dtype, what, self.unpacked)
        inner = {
            name: self._entry(owner, f"{part}.{name}" if part else name, item, depth + 1)
            for name, item in parts.items()
        }
        return Node(method, shape, dtype, inner, settings)

    def _leaf(self, owner: str, part: str, entry: list[Any], what: str) -> int:
        if len(entry) not in (2, 3, 4) or len(self.leaves) >= layout.MAX_TENSORS:
            raise FileError(f"manifest: {what}: no entry of a tensor, or one too many")
        code, shape = entry[0], layout.check_shape(entry[1], what)
        dtype = layout.dtype_of(code, what)
        self.decoded += self._counted(shape, dtype, what, self.decoded)
        self.elements += math.prod(shape)
        if self.elements > max(layout.MAX_ELEMENTS, self.max_bytes // 8):
            raise FileError(f"manifest: {what}: takes the file beyond {layout.MAX_ELEMENTS} elements")
        how, argument = (*entry[2:], None, None)[:2]
        if how is None:
            leaf = self._named_leaf(Leaf(owner, part, code, shape, "named", 0), len(entry))
        elif how == "raw":
            length = math.prod(shape) * dtype.itemsize
            if argument is not None or not dtype.is_floating_point:
                raise FileError(f"manifest: {what}: only floats are stored as they are, and without a length")
            leaf = self._streamed(Leaf(owner, part, code, shape, how, length), length)
        elif how == "=":
            leaf = Leaf(owner, part, code, shape, how, self._element(argument, shape, dtype, what))
        elif how == "copy":
            leaf = Leaf(owner, part, code, shape, how, self._copied(argument, code, shape, what))
        else:
            length = _length(argument, what)
            if dtype.is_floating_point or not isinstance(how, str) or not layout.CODING.fullmatch(how):
                raise FileError(f"manifest: {what}: {str(how)[:40]!a} is no coding of {code}")
            leaf = self._streamed(Leaf(owner, part, code, shape, how, length), length)
        self.leaves.append(leaf)
        return len(self.leaves) - 1

    def _counted(self, shape: tuple[int, ...], dtype: torch.dtype, what: str, so_far: int) -> int:
        """Returns the bytes of a tensor, once it is clear that all so far are below the caps."""
        length = math.prod(shape) * dtype.itemsize
        if so_far + length > self.max_bytes:
            raise FileError(
                f"{what}: its shape {list(shape)[:8]} takes the file beyond {self.max_bytes} bytes; "
                "pass a larger max_bytes if you trust it"
            )
        return length

    def _named_leaf(self, leaf: Leaf, fields: int) -> Leaf:
        found = self.ranges.get(leaf.name)
        if fields != 2 or found is None or leaf.name in self._named:
            raise FileError(f"manifest: {leaf.name}: no tensor of its own in the header, or named twice")
        if (found.code, found.shape) != (leaf.code, leaf.shape) or leaf.code not in layout.FLOATS:
            raise FileError(f"manifest: {leaf.name}: another dtype or shape than in the header, or no float")
        self._named.add(leaf.name)
        return leaf

    def _streamed(self, leaf: Leaf, length: int) -> Leaf:
        self.stream += length
        return leaf

    def _element(self, argument: object, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> str:
        digits = 2 * dtype.itemsize if math.prod(shape) else 0
        if not isinstance(argument, str) or len(argument) != digits or set(argument) - set("0123456789abcdef"):
            raise FileError(f"manifest: {what}: the element that fills it must have {digits} hexadecimal digits")
        if dtype == torch.bool and argument not in {"", "00", "01"}:
            raise FileError(f"manifest: {what}: {argument} is no truth value")
        return argument

    def _copied(self, argument: object, code: str, shape: tuple[int, ...], what: str) -> int:
        number = _length(argument, what)
        if number >= len(self.leaves):
            raise FileError(f"manifest: {what}: copies a tensor that doesn't come before it")
        source = self.leaves[number]
        if source.how in {"copy", "="} or (source.code, source.shape) != (code, shape):
            raise FileError(f"manifest: {what}: copies a tensor of another kind")
        return number


def _length(argument: object, what: str) -> int:
    if type(argument) is not int or not 0 <= argument < 2**63:
        raise FileError(f"manifest: {what}: {str(argument)[:40]!a} is no length or number of a tensor")
    return argument


def check_keys(data: object) -> dict[str, Any]:
    """Returns the manifest if it is an object of the known keys."""
    if not isinstance(data, dict) or not data.keys() <= _KEYS or "w" not in data:
        raise FileError("manifest: its keys are not those of a manifest")
    return data


def aliases(data: object, names: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, str]:
    """Reads the names of tied weights.

    Args:
        data: what stands in the manifest.
        names: the weights.
        others: the constants.
    """
    if not isinstance(data, dict):
        raise FileError("manifest: aliases must be an object")
    for alias, name in data.items():
        layout.check_name(alias)
        if not isinstance(name, str) or name not in names or alias in names or alias in others:
            raise FileError(f"manifest: alias {alias[:80]!a} names no weight, or is one itself")
    return data


def cuts(data: object) -> tuple[Cut, ...]:
    """Reads the structural cuts; see `manifest.cut_data`."""
    if not isinstance(data, list):
        raise FileError("manifest: cuts must be a list")
    return tuple(_cut(item) for item in data)


def _cut(item: object) -> Cut:
    if not isinstance(item, list) or len(item) != 4 or not isinstance(item[3], list):
        raise FileError("manifest: a cut must be [parameter, axis, size, gaps]")
    name, axis, size, gaps = item
    layout.check_name(name)
    if any(type(x) is not int or not 0 <= x < 2**31 for x in (axis, size)) or axis >= layout.MAX_AXES:
        raise FileError(f"manifest: the cut of {name[:80]!a} has no valid axis or size")
    if any(type(x) is not int or not 1 <= x <= size for x in gaps) or sum(gaps) > size:
        raise FileError(f"manifest: the cut of {name[:80]!a} keeps indices that its axis of {size} doesn't have")
    kept, at = [], -1
    for gap in gaps:
        at += gap
        kept.append(at)
    return Cut(name, axis, tuple(kept), size)


def blocks(data: object) -> tuple[Skip, ...]:
    """Reads the residual blocks that are gone: `[module, then, packed]` each."""
    if not isinstance(data, list):
        raise FileError("manifest: blocks must be a list")
    return tuple(_block(item) for item in data)


def _block(item: object) -> Skip:
    if not isinstance(item, list) or len(item) != 3:
        raise FileError("manifest: a block must be [module, then, packed]")
    module, then, packed = item
    layout.check_name(module)
    if then not in ("", "relu") or not isinstance(packed, bool):
        raise FileError(f"manifest: the block {module[:80]!a} is followed by nothing that is known")
    return Skip(module, then, packed)


def sizes(data: object) -> tuple[Resize, ...]:
    """Reads the sizes that follow the cuts: `[module, attribute, old numbers, new numbers]` each."""
    if not isinstance(data, list):
        raise FileError("manifest: sizes must be a list")
    return tuple(_size(item) for item in data)


def _size(item: object) -> Resize:
    if not isinstance(item, list) or len(item) != 4:
        raise FileError("manifest: a size must be [module, attribute, old, new]")
    module, attribute, old, new = item
    if not isinstance(module, str) or len(module) > layout.MAX_NAME:
        raise FileError("manifest: a size must name a module")
    if not isinstance(attribute, str) or not attribute.isidentifier() or attribute.startswith("_"):
        raise FileError("manifest: a size must name an attribute that is no private one")
    for numbers in (old, new):
        if not isinstance(numbers, list) or any(type(x) is not int or not 0 <= x < 2**31 for x in numbers):
            raise FileError("manifest: a size must be whole numbers")
    if not old or len(old) != len(new) or len(old) > 64:
        raise FileError("manifest: a size must have as many numbers before and after, 1 to 64")
    return Resize(module, attribute, tuple(old), tuple(new))


def quantizers(data: object) -> dict[str, Quantized]:
    """Reads how what goes into layers is quantized: `{path: [method and settings, numbers]}`."""
    if not isinstance(data, dict) or len(data) > layout.MAX_TENSORS:
        raise FileError("manifest: quantizers must be an object")
    return {path: _quantizer(path, item) for path, item in data.items()}


def _quantizer(path: str, item: object) -> Quantized:
    if path:
        layout.check_name(path)
    what = f"manifest: the quantizer of {path[:80]!a}"
    if not isinstance(item, list) or len(item) != 2:
        raise FileError(f"{what}: must be [method and settings, numbers]")
    try:
        method, numbers = step_of(item[0], what, "observe", absent=True), check_numbers(item[1], what)
        if not isinstance(method, Absent):
            # Whether it can be carried out is seen on a single zero.
            method.forward(torch.zeros(1, 1), numbers)
    except Exception as error:  # a method's own checks, met with a stranger's settings
        raise FileError(f"{what}: {one_line(error)}" if not isinstance(error, FileError) else str(error)) from None
    return Quantized(method, numbers)
