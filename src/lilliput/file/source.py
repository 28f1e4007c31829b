"""The bytes of a file on their way in: header and digest checked, the manifest inflated, nothing decoded yet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from lilliput.core.errors import FileError
from lilliput.file import entries, header, layout, manifest, strict_json
from lilliput.file.entries import Entries, Node
from lilliput.file.header import Range


@dataclass(frozen=True)
class Opened:
    """A file whose digest has been checked, and of which nothing has been decoded.

    Attributes:
        ranges: the tensors of the header by name.
        buffers: their bytes.
        digest: SHA-256 of the file.
        size: bytes of the file.
        head: bytes before the data.
    """

    ranges: Mapping[str, Range]
    buffers: Mapping[str, np.ndarray]
    digest: str
    size: int
    head: int


def open_file(file: BinaryIO, length: int) -> Opened:
    """Reads all bytes of a file, each tensor's into a buffer of its own, and checks their digest."""
    first = file.read(8)
    size = header.check_length(first, length)
    head = file.read(size)
    expected = header.check_head(head)
    ranges = header.parse(head, length - 8 - size)
    at = len(layout.PREFIX % layout.VERSION)
    digest = hashlib.sha256(first + head[:at] + b"0" * layout.DIGITS + head[at + layout.DIGITS :])
    buffers = {}
    for item in ranges:
        buffer = np.empty(item.end - item.begin, np.uint8)
        if file.readinto(buffer.data) != len(buffer):  # type: ignore[attr-defined]
            raise FileError("the file became shorter while it was read")
        digest.update(buffer.data)
        buffers[item.name] = buffer
    if digest.hexdigest() != expected:
        raise FileError("the file is damaged: its digest differs from the one it was written with; get it anew")
    return Opened({r.name: r for r in ranges}, buffers, expected, length, 8 + size)


def table_of(opened: Opened) -> tuple[dict[str, Any], int]:
    """Returns the manifest of a file as plain data, and the length of the coded streams."""
    for name in (layout.MANIFEST, layout.STREAMS):
        found = opened.ranges.get(name)
        if found is not None and (found.code != "U8" or len(found.shape) != 1):
            raise FileError(f"header: '{name}' must be a tensor of bytes")
    if layout.MANIFEST not in opened.ranges:
        raise FileError("header: the manifest is missing")
    text = manifest.inflate(opened.buffers[layout.MANIFEST].data)
    streams = opened.buffers.get(layout.STREAMS)
    return entries.check_keys(strict_json.parse(text, "manifest")), 0 if streams is None else len(streams)


def entries_of(
    opened: Opened, table: Mapping[str, Any], streams: int, max_bytes: int
) -> tuple[Entries, dict[str, Node | int], dict[str, Node | int]]:
    """Returns all entries of a manifest, those of the weights and those of the constants."""
    apart = {n: r for n, r in opened.ranges.items() if n not in {layout.MANIFEST, layout.STREAMS}}
    found = Entries(apart, max_bytes)
    weights = found.table(table["w"], "weights")
    constants = found.table(table.get("c", {}), "constants")
    if both := weights.keys() & constants.keys():
        raise FileError(f"manifest: {min(both)[:80]!a} is both a weight and a constant")
    found.finish(streams)
    return found, weights, constants
