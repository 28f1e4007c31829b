"""Writes an artifact to one file, whole or not at all, the same bytes each time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from lilliput.core.errors import FileError
from lilliput.file import header, layout, manifest
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces
from lilliput.file.header import Range
from lilliput.file.leaf import Leaf, Leaves, View

Form = Literal["auto", "named", "solid"]

WORTH_NAMING = 1000
"""`auto` gives the floats names of their own where that costs less than one part in so many of the file."""


@dataclass(frozen=True)
class Layout:
    """A file ready to be written.

    Attributes:
        head: length and header, the digest still zeros.
        pieces: the bytes after it, in order.
        leaves: every tensor.
        named: floats are tensors of their own.
    """

    head: bytes
    pieces: tuple[View, ...]
    leaves: tuple[Leaf, ...]
    named: bool

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + sum(len(piece) for piece in self.pieces)

    def sealed(self) -> tuple[View, ...]:
        """Returns all pieces of the file, the digest in its place."""
        digest = hashlib.sha256(self.head)
        for piece in self.pieces:
            digest.update(piece)
        at = 8 + len(layout.PREFIX % layout.VERSION)
        head = self.head[:at] + digest.hexdigest().encode("ascii") + self.head[at + layout.DIGITS :]
        return head, *self.pieces


def write(artifact: Artifact, path: str | PathLike[str], form: Form = "auto") -> int:
    """Writes the file atomically: it appears whole under its name, or not at all.

    Args:
        artifact: what is to be written.
        path: the file; one that is there is replaced once the new one is safe on the disk.
        form: `"named"`: floats are tensors of their own, which any reader of safetensors sees by name; `"solid"`:
            they stand among the coded streams, which saves about 90 bytes each; `"auto"`: named unless that costs
            more than a thousandth of the file.

    Returns:
        The size of the file in bytes.

    Raises:
        FileError: the artifact holds what a file can't, or the file can't be written (the disk is full, the folder
            is missing or read-only); nothing is left behind then.
    """
    planned = plan(artifact, form)
    return write_pieces(path, planned.sealed())


def dumps(artifact: Artifact, form: Form = "auto") -> bytes:
    """Returns the file's bytes; see `write`.

    >>> import torch
    >>> from lilliput.file.read import loads
    >>> loads(dumps(Artifact({"bias": torch.tensor([1.0, 2.0])}))).weights["bias"]
    tensor([1., 2.])
    """
    return b"".join(plan(artifact, form).sealed())


def size(artifact: Artifact, form: Form = "auto") -> int:
    """Returns the size in bytes of the file that `write` would write, exactly; encodes everything to learn it."""
    return plan(artifact, form).size


def sizes(artifact: Artifact, form: Form = "auto") -> dict[str, Any]:
    """Returns where a file's bytes are.

    Args:
        artifact: what would be written.
        form: see `write`.

    Returns:
        `total`, which is the sum of `header`, `graph` (its share of the deflated manifest), `manifest` (the rest of
        it) and of all numbers in `coded` and `floats`: bytes by weight and by leaf, as in
        `{"conv.weight": {"codes": 812}}`, for integers and floats; a plain tensor is the leaf `""`.
    """
    planned = plan(artifact, form)
    whole = len(planned.pieces[-1])
    bare = len(manifest.of(artifact, planned.leaves, planned.named, graph=False))
    coded: dict[str, dict[str, int]] = {}
    floats: dict[str, dict[str, int]] = {}
    for leaf in planned.leaves:
        table = floats if leaf.code in layout.FLOATS else coded
        table.setdefault(leaf.owner, {})[leaf.part] = len(leaf.data)
    return {
        "total": planned.size,
        "header": len(planned.head),
        "manifest": bare,
        "graph": whole - bare,
        "coded": coded,
        "floats": floats,
    }


def plan(artifact: Artifact, form: Form = "auto") -> Layout:
    """Encodes everything and lays the file out; see `write`."""
    if form not in {"auto", "named", "solid"}:
        raise FileError(f"no form '{form}' of a file; there is auto, named, solid")
    found = Leaves()
    for name, value in [*artifact.weights.items(), *artifact.constants.items()]:
        found.add(layout.check_name(name), value)
    check_names(artifact)
    leaves = tuple(found)
    solid = _lay_out(artifact, leaves, named=False)
    if form == "solid":
        return solid
    try:
        named = _lay_out(artifact, leaves, named=True)
    except FileError:
        if form == "named":
            raise
        return solid
    return solid if form == "auto" and (named.size - solid.size) * WORTH_NAMING > solid.size else named


def check_names(artifact: Artifact) -> None:
    """Raises FileError unless constants and aliases have names of their own, and aliases lead to weights."""
    for name in artifact.constants:
        if name in artifact.weights:
            raise FileError(f"'{name}' is both a weight and a constant")
    for alias, name in artifact.aliases.items():
        layout.check_name(alias)
        if name not in artifact.weights or alias in artifact.weights or alias in artifact.constants:
            raise FileError(f"alias '{alias}' of '{name}': the one must be a weight, the other none")


def _lay_out(artifact: Artifact, leaves: tuple[Leaf, ...], named: bool) -> Layout:
    apart = [leaf for leaf in leaves if named and leaf.how == "raw"]
    streams = [leaf.data for leaf in leaves if leaf.data and not (named and leaf.how == "raw")]
    # The widest first, so that each tensor is aligned to its own elements.
    apart.sort(key=lambda leaf: -layout.DTYPES[leaf.code].itemsize)
    table = manifest.of(artifact, leaves, named)
    parts = [(layout.check_name(leaf.name), leaf.code, leaf.shape, len(leaf.data)) for leaf in apart]
    if streams:
        length = sum(len(stream) for stream in streams)
        parts.append((layout.STREAMS, "U8", (length,), length))
    parts.append((layout.MANIFEST, "U8", (len(table),), len(table)))
    ranges, begin = [], 0
    for name, code, shape, length in parts:
        ranges.append(Range(name, code, shape, begin, begin + length))
        begin += length
    if len({r.name for r in ranges}) != len(ranges):
        raise FileError("two tensors of the file have the same name: a weight is called like a part of another")
    return Layout(header.build(ranges), (*(leaf.data for leaf in apart), *streams, table), leaves, named)
