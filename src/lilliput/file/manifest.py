"""The manifest: everything about a file but its tensors' bytes, as terse JSON, deflated."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from lilliput.core.activations import Quantized, check_numbers
from lilliput.core.cut import Cut
from lilliput.core.errors import FileError, LilliputError
from lilliput.core.packed import Packed
from lilliput.core.recipe import step_data, to_data
from lilliput.file import layout, strict_json
from lilliput.file.artifact import Artifact
from lilliput.file.dictionary import DICTIONARY
from lilliput.file.leaf import Leaf


def of(artifact: Artifact, leaves: Sequence[Leaf], named: bool, graph: bool = True) -> bytes:
    """Returns the deflated manifest of an artifact whose leaves have been encoded.

    Args:
        artifact: what is to be written.
        leaves: those of its weights, then those of its constants.
        named: floats are tensors of their own.
        graph: False leaves the graph out, to learn what it takes.

    Raises:
        FileError: something in the artifact that no file can hold.
    """
    rest = iter(leaves)
    data: dict[str, Any] = {"w": {name: _tree(value, rest, named) for name, value in artifact.weights.items()}}
    if artifact.constants:
        data["c"] = {name: _tree(value, rest, named) for name, value in artifact.constants.items()}
    if artifact.aliases:
        data["a"] = dict(artifact.aliases)
    if artifact.recipe.rules or artifact.recipe.name or artifact.recipe.cuts:
        data["r"] = to_data(artifact.recipe)
    if artifact.cuts:
        data["k"] = [cut_data(cut) for cut in artifact.cuts]
    if artifact.blocks:
        data["b"] = [[skip.module, skip.then, skip.packed] for skip in artifact.blocks]
    if artifact.sizes:
        data["z"] = [[size.module, size.attribute, [*size.old], [*size.new]] for size in artifact.sizes]
    if artifact.quantizers:
        data["q"] = {path: _quantizer(path, value) for path, value in artifact.quantizers.items()}
    if artifact.facts:
        data["f"] = strict_json.plain(artifact.facts, "facts")
    if artifact.graph is not None and graph:
        data["g"] = artifact.graph.to_json()
    return deflate(strict_json.dump(data, "manifest"))


def _quantizer(path: str, value: Quantized) -> list[Any]:
    what = f"the quantizer of {path[:80]!a}"
    if path:
        layout.check_name(path)
    try:
        return [step_data(value.method), check_numbers(value.numbers, what)]
    except LilliputError as error:
        raise FileError(str(error)) from None


def _tree(value: Packed | Tensor, rest: Iterator[Leaf], named: bool, depth: int = 0) -> Any:
    if isinstance(value, Tensor):
        return next(rest).entry(named)
    check_packed(value, depth)
    entry: dict[str, Any] = {"m": value.method, "s": list(value.shape)}
    code = layout.code_of(value.dtype, value.method)
    if code != "F32":
        entry["d"] = code
    if value.settings:
        entry["x"] = dict(value.settings)
    entry["p"] = {name: _tree(part, rest, named, depth + 1) for name, part in value.parts.items()}
    return entry


def check_packed(packed: Packed, depth: int) -> None:
    """Raises FileError if a packed weight, parts aside, is none that a file may hold."""
    what = f"packed by {str(packed.method)[:80]!a}"
    if not isinstance(packed.method, str) or not layout.METHOD.fullmatch(packed.method):
        raise FileError(f"{what}: that is no path of a weight method (families {', '.join(layout.FAMILIES)})")
    if (
        depth >= layout.MAX_PACKED_DEPTH
        or len(packed.parts) > layout.MAX_PARTS
        or len(packed.settings) > layout.MAX_PARTS
    ):
        raise FileError(f"{what}: too many parts or settings, or packed too many times over")
    if not packed.dtype.is_floating_point:
        raise FileError(f"{what}: a packed weight is floating-point, not {packed.dtype}")
    for name in (*packed.parts, *packed.settings):
        if not isinstance(name, str) or not layout.PART.fullmatch(name):
            raise FileError(f"{what}: {str(name)[:80]!a} can't be the name of a part or setting")
    for name, value in packed.settings.items():
        if not is_setting(value):
            raise FileError(f"{what}: setting '{name}' must be a finite number, a truth value or a short string")


def is_setting(value: object) -> bool:
    """Whether a value can be a setting of a packed weight."""
    if type(value) is int:
        return -(2**63) <= value < 2**63
    if type(value) is float:
        return abs(value) < float("inf")
    return type(value) is bool or (type(value) is str and len(value) <= layout.MAX_NAME)


def cut_data(cut: Cut) -> list[Any]:
    """Returns a cut as `[parameter, axis, size, gaps]`, a gap being the distance from the kept index before (or -1)."""
    gaps = [here - before for before, here in zip((-1, *cut.kept), cut.kept)]
    return [cut.parameter, cut.axis, cut.size, gaps]


def deflate(text: bytes) -> bytes:
    """Compresses the manifest: raw DEFLATE (RFC 1951) with the format's preset dictionary."""
    if len(text) > layout.MAX_MANIFEST:
        raise FileError(f"manifest: {len(text)} bytes, more than {layout.MAX_MANIFEST}; leave out facts or the graph")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return packer.compress(text) + packer.flush()


def inflate(data: bytes | memoryview) -> bytes:
    """Undoes `deflate`; refuses more than the format's cap, and anything after the end."""
    unpacker = zlib.decompressobj(-15, DICTIONARY)
    try:
        text = unpacker.decompress(data, layout.MAX_MANIFEST + 1)
    except zlib.error as error:
        raise FileError(f"manifest: can't be inflated: {str(error)[:120]}") from None
    if len(text) > layout.MAX_MANIFEST:
        raise FileError(f"manifest: inflates to more than {layout.MAX_MANIFEST} bytes")
    if not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
        raise FileError("manifest: its compressed form ends too early or too late")
    return text
