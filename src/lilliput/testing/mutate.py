"""Takes a file apart, changes it and seals it again, so that what lies behind its digest is tested too."""

from __future__ import annotations

import hashlib
import json
import random
import re
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

from lilliput.file import layout
from lilliput.file.dictionary import DICTIONARY
from lilliput.file.manifest import inflate

# What a number or word in a manifest or header may be replaced by.
_VALUES = """
-1 0 1 2 255 256 65536 2147483647 2147483648 1099511627776 9223372036854775807 9223372036854775808 18446744073709551616
1e308 1e999 NaN -Infinity 0.5 true null [] {} [[]] "" "../x" "\\u0000" "F32" "BOOL" "rans" "bitpack" "copy" "=" "raw"
"""
VALUES = tuple(_VALUES.split())
_TOKEN = re.compile(rb'-?[0-9][0-9.eE+-]*|true|false|null|"[^"\\]*"')


@dataclass(frozen=True)
class Forged:
    """The pieces of a file, to be changed and sealed.

    Attributes:
        manifest: JSON text.
        streams: bytes of the coded streams.
        floats: named tensors: (name, dtype, shape, bytes).
        entries: header entries that replace those that would fit, by name; None leaves one out.
    """

    manifest: bytes
    streams: bytes = b""
    floats: tuple[tuple[str, str, tuple[int, ...], bytes], ...] = ()
    entries: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> Any:
        """The manifest as data."""
        return json.loads(self.manifest)

    def with_table(self, table: Any) -> Forged:
        """Returns the same file with another manifest."""
        return replace(self, manifest=json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode())

    def seal(self) -> bytes:
        """Returns the file."""
        parts = [*self.floats]
        if self.streams:
            parts.append((layout.STREAMS, "U8", (len(self.streams),), self.streams))
        packed = deflated(self.manifest)
        parts.append((layout.MANIFEST, "U8", (len(packed),), packed))
        entries, begin = {}, 0
        for name, code, shape, data in parts:
            entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, begin + len(data)]}
            begin += len(data)
        entries |= self.entries
        text = json.dumps({k: v for k, v in entries.items() if v is not None}, separators=(",", ":"))
        return sealed(text.encode(), b"".join(part[3] for part in parts))


def take_apart(data: bytes) -> Forged:
    """Returns the pieces of a valid file."""
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    del entries["__metadata__"]
    body = data[8 + length :]
    bytes_of = {name: body[slice(*entry["data_offsets"])] for name, entry in entries.items()}
    floats = tuple(
        (name, entry["dtype"], tuple(entry["shape"]), bytes_of[name])
        for name, entry in entries.items()
        if name not in {layout.MANIFEST, layout.STREAMS}
    )
    return Forged(inflate(bytes_of[layout.MANIFEST]), bytes_of.get(layout.STREAMS, b""), floats)


def deflated(text: bytes) -> bytes:
    """Compresses a manifest of any size; the writer's own function has a cap."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return packer.compress(text) + packer.flush()


def sealed(header: bytes, data: bytes) -> bytes:
    """Returns a file with this header (a JSON object's text, without metadata) and data, and the digest that fits.

    Args:
        header: whatever is to follow the metadata; its first brace is left out.
        data: the bytes after the header.
    """
    start = layout.PREFIX % layout.VERSION + b"0" * layout.DIGITS + b'"}'
    rest = header[1:]
    text = start + (b"" if rest[:1] == b"}" else b",") + rest
    text += b" " * (-(8 + len(text)) % layout.ALIGNMENT)
    return reseal(len(text).to_bytes(8, "little") + text + data)


def reseal(data: bytes) -> bytes:
    """Returns a file with its digest set right, if it is long enough to have one."""
    at = 8 + len(layout.PREFIX % layout.VERSION)
    if len(data) < at + layout.DIGITS:
        return data
    bare = data[:at] + b"0" * layout.DIGITS + data[at + layout.DIGITS :]
    return data[:at] + hashlib.sha256(bare).hexdigest().encode() + data[at + layout.DIGITS :]


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flips, overwrites, removes, doubles or inserts a few bytes."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(out):
                out[at] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
            case 2:
                del out[at : at + chance.choice((1, 1, 2, 8, 64))]
            case 3:
                out[at:at] = out[at : at + chance.choice((1, 4, 32))]
            case 4:
                out[at:at] = chance.randbytes(chance.choice((1, 2, 8)))
            case _:
                word = chance.choice((b"\xff" * 4, b"\0" * 4, b"\0\0\0\x80", b"\xff\xff\xff\x7f"))
                out[at : at + 4] = word[: len(out) - at]
    return bytes(out)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Overwrites a few bytes, so that the length stays."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        out[chance.randrange(len(out))] = chance.choice((0, 255, chance.randrange(256)))
    return bytes(out)


def mutate_text(text: bytes, chance: random.Random) -> bytes:
    """Replaces tokens of JSON by others, from the same text or from `VALUES`, so that most of it stays JSON."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        found = [match.span() for match in _TOKEN.finditer(text)]
        if not found:
            return mutate_bytes(text, chance)
        start, end = chance.choice(found)
        other = chance.choice(found)
        match chance.randrange(4):
            case 0:
                new = text[slice(*other)]
            case 1 if text[start:end].isdigit():
                new = str(max(0, int(text[start:end]) + chance.choice((-1, 1, -8, 8, 100)))).encode()
            case 2:
                new = text[start:end] + b"," + text[slice(*other)]
            case _:
                new = chance.choice(VALUES).encode()
        text = text[:start] + new + text[end:]
    return text


def mutate(data: bytes, chance: random.Random) -> bytes:
    """Returns a file changed in one of several ways: its bytes, header, manifest or streams; mostly sealed again.

    Args:
        data: a valid file.
        chance: decides.
    """
    kind = chance.randrange(8)
    if kind == 0:
        return mutate_bytes(data, chance)
    if kind == 1:
        return reseal(mutate_bytes(data, chance))
    forged = take_apart(data)
    if kind == 2:
        whole = forged.seal()
        length = int.from_bytes(whole[:8], "little")
        text = whole[8 : 8 + length]
        rest = b"{" + text[len(layout.PREFIX % layout.VERSION) + layout.DIGITS + 3 :].rstrip()
        return sealed(mutate_text(rest, chance), whole[8 + length :])
    if kind in (3, 4) and forged.streams:
        return replace(forged, streams=damage(forged.streams, chance)).seal()
    if kind == 5:
        return replace(forged, manifest=mutate_bytes(forged.manifest, chance)).seal()
    return replace(forged, manifest=mutate_text(forged.manifest, chance)).seal()
