"""The safetensors header: built canonically, and read with every bound checked before memory is taken."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass

from lilliput.core.errors import FileError
from lilliput.file import layout, strict_json

_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Range:
    """One tensor of a safetensors file.

    Attributes:
        name: its key in the header.
        code: dtype, such as `"F32"`.
        shape: its shape.
        begin: first byte, counted from where the data begin.
        end: first byte after it.
    """

    name: str
    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


def build(ranges: Iterable[Range], digest: str = "0" * layout.DIGITS) -> bytes:
    """Returns the header with its length in front, filled up with spaces so that the data are aligned.

    Args:
        ranges: in the order of their bytes.
        digest: SHA-256 in hexadecimal; zeros while it isn't known.

    Raises:
        FileError: if the header is longer than a reader would take.
    """
    items = [
        json.dumps(r.name, ensure_ascii=False)
        + f':{{"dtype":"{r.code}","shape":{json.dumps(list(r.shape), separators=(",", ":"))}'
        + f',"data_offsets":[{r.begin},{r.end}]}}'
        for r in ranges
    ]
    text = layout.PREFIX % layout.VERSION + digest.encode("ascii") + b'"},' + ",".join(items).encode("utf-8") + b"}"
    text += b" " * (-(8 + len(text)) % layout.ALIGNMENT)
    if len(text) > layout.MAX_HEADER or len(items) > layout.MAX_TENSORS:
        raise FileError(f"{len(items)} named tensors make too long a header; write the solid form")
    return len(text).to_bytes(8, "little") + text


def check_length(first: bytes, file_length: int) -> int:
    """Returns the header's length from the first eight bytes of a file of so many bytes."""
    length = int.from_bytes(first[:8], "little")
    if len(first) < 8 or length < 2 or length > file_length - 8:
        raise FileError("this is no safetensors file, or one that was cut short: its header goes beyond its end")
    if length > layout.MAX_HEADER:
        raise FileError(f"header: {length} bytes, more than {layout.MAX_HEADER}")
    return length


def check_head(header: bytes) -> str:
    """Returns the digest in the header, after checking that this is a Lilliput file of a version that can be read."""
    match = layout.HEAD.match(header)
    if match is None:
        raise FileError("this is no Lilliput file: its header doesn't begin as the format asks")
    version = int(match[1])
    if version > layout.VERSION:
        raise FileError(f"the file is of format version {version}, this Lilliput reads up to {layout.VERSION}; upgrade")
    return match[2].decode("ascii")


def parse(header: bytes, data_length: int) -> list[Range]:
    """Reads the tensors of a header, sorted by where their bytes begin.

    Args:
        header: all of it, without the length in front.
        data_length: bytes of the file after the header.

    Raises:
        FileError: anything other than named tensors whose ranges cover the data without gap or overlap.
    """
    table = strict_json.parse(header, "header")
    if not isinstance(table, dict) or len(table) > layout.MAX_TENSORS + 1:
        raise FileError(f"header: must be an object of at most {layout.MAX_TENSORS} tensors")
    del table["__metadata__"]
    ranges = sorted((_range(name, entry) for name, entry in table.items()), key=lambda r: (r.begin, r.end))
    end = 0
    for item in ranges:
        if item.begin != end:
            kind = "overlaps another" if item.begin < end else "leaves a gap before it"
            raise FileError(f"header: tensor {item.name[:80]!a} {kind} (bytes {item.begin} to {item.end})")
        end = item.end
    if end != data_length:
        raise FileError(f"the file has {data_length} bytes of data, its header describes {end}: cut short or added to")
    return ranges


def _range(name: str, entry: object) -> Range:
    what = f"header: tensor {name[:80]!a}"
    if name not in {layout.MANIFEST, layout.STREAMS}:
        layout.check_name(name)
    if not isinstance(entry, dict) or entry.keys() != _KEYS:
        raise FileError(f"{what}: must have dtype, shape and data_offsets")
    dtype = layout.dtype_of(entry["dtype"], what)
    shape = layout.check_shape(entry["shape"], what)
    offsets = entry["data_offsets"]
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(x) is not int for x in offsets):
        raise FileError(f"{what}: data_offsets must be two whole numbers")
    begin, end = offsets
    if not 0 <= begin <= end < 2**63 or end - begin != math.prod(shape) * dtype.itemsize:
        raise FileError(f"{what}: its range of bytes doesn't fit its shape {list(shape)[:8]} of {entry['dtype']}")
    return Range(name, entry["dtype"], shape, begin, end)
