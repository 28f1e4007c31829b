"""The constants of the file format: names, limits, dtypes, and which names and methods a file may use."""

from __future__ import annotations

import math
import re
from typing import Final

import torch

from lilliput.core.errors import FileError

VERSION: Final = 1
"""Version of the format that is written, and the newest that can be read."""

MANIFEST: Final = "lilliput.manifest"
STREAMS: Final = "lilliput.streams"
"""Names of the two U8 tensors that every file holds; no weight may be called so."""

PREFIX: Final = b'{"__metadata__":{"format":"lilliput","version":"%d","sha256":"'
"""How the header begins, so that version and digest stand where they are found without reading JSON."""

HEAD: Final = re.compile(
    rb'\{"__metadata__":\{"format":"lilliput","version":"([1-9][0-9]{0,8})","sha256":"([0-9a-f]{64})"\}[,}]'
)
DIGITS: Final = 64
"""Length of a SHA-256 in hexadecimal."""

ALIGNMENT: Final = 8
"""The data begin at a multiple of this many bytes; the header is filled up with spaces."""

# Limits that are checked before memory is taken.
MAX_HEADER: Final = 16 * 2**20
MAX_MANIFEST: Final = 16 * 2**20
MAX_TENSORS: Final = 100_000
MAX_DEPTH: Final = 64
MAX_TOKENS: Final = 2_000_000
MAX_STRINGS: Final = 1_000_000
MAX_NAME: Final = 512
MAX_AXES: Final = 64
MAX_PACKED_DEPTH: Final = 16
MAX_PARTS: Final = 64
MAX_ELEMENTS: Final = 2**31
MAX_BYTES: Final = 16 * 2**30
"""Default cap on the bytes that a file's tensors take once decoded, and on those of the weights once unpacked."""

FLOATS: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS: Final = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
DTYPES: Final = FLOATS | INTEGERS
CODES: Final = {dtype: code for code, dtype in DTYPES.items()}

FAMILIES: Final = ("factorize", "prune", "quantize", "share")
"""Families whose methods may have packed a weight."""

METHOD: Final = re.compile(rf"(?:{'|'.join(FAMILIES)})/[a-z][a-z0-9_]{{0,63}}")
PART: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
CODING: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


def check_name(name: object) -> str:
    """Returns the name of a parameter, buffer or constant if a file may hold it.

    Args:
        name: anything.

    Raises:
        FileError: empty, too long, unprintable, with an empty part between dots, or like a path that leads elsewhere.

    >>> check_name("layer.0.weight")
    'layer.0.weight'
    """
    if not isinstance(name, str):
        raise FileError(f"a name must be a string, not {type(name).__name__}")
    shown = ascii(name[:80])
    if name[:1] in {"/", "\\"} or name[1:3] in {":/", ":\\"} or ".." in re.split(r"[/\\]", name):
        raise FileError(f"{shown} can't be a tensor's name: it looks like a path to another file")
    if not 0 < len(name) <= MAX_NAME or not name.isprintable() or not all(name.split(".")):
        raise FileError(f"{shown} can't be a tensor's name: empty, too long, unprintable or with an empty part")
    if name in {MANIFEST, STREAMS, "__metadata__"}:
        raise FileError(f"{shown} can't be a tensor's name: the format needs it for itself")
    return name


def check_shape(shape: object, what: str) -> tuple[int, ...]:
    """Returns a shape as a tuple if it is a list of whole numbers whose product, zeros left out, is below 2^40."""
    if not isinstance(shape, list | tuple) or len(shape) > MAX_AXES:
        raise FileError(f"{what}: a shape must be a list of at most {MAX_AXES} sizes")
    for size in shape:
        if type(size) is not int or not 0 <= size < 2**40:
            raise FileError(f"{what}: {ascii(size)[:40]} is no size of an axis")
    if math.prod(max(size, 1) for size in shape) >= 2**40:
        raise FileError(f"{what}: a shape of 2^40 elements or more takes the file beyond what any may hold")
    return tuple(shape)


def dtype_of(code: object, what: str) -> torch.dtype:
    """Returns the dtype of a code such as `"F32"`."""
    if not isinstance(code, str) or code not in DTYPES:
        raise FileError(f"{what}: dtype {str(code)[:40]!a} is none of {', '.join(DTYPES)}")
    return DTYPES[code]


def code_of(dtype: torch.dtype, what: str) -> str:
    """Returns the code of a dtype; FileError if a file can't hold it."""
    if dtype not in CODES:
        raise FileError(f"{what}: a file can't hold {dtype}; convert the tensor first")
    return CODES[dtype]
