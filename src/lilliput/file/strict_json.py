"""JSON as the format takes it: bounded in size, depth and count, without doubled keys or numbers that aren't finite."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from lilliput.core.errors import FileError
from lilliput.file.layout import MAX_DEPTH, MAX_STRINGS, MAX_TOKENS

# A string, also one that never ends: it always matches where a quote stands, so that the search is linear.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_LONG_NUMBER = re.compile(rb"[0-9]{40}")


def parse(data: bytes, what: str) -> Any:
    """Reads JSON that may come from a stranger.

    Args:
        data: UTF-8, already bounded in length.
        what: for messages, such as `"header"`.

    Raises:
        FileError: whatever is wrong, before much memory or stack is taken.

    >>> parse(b'{"a": [1, 2.5]}', "header")
    {'a': [1, 2.5]}
    """
    _check_structure(data, what)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_float=_float, parse_constant=_refuse)
    except FileError as error:
        raise FileError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what}: not valid JSON: {str(error)[:120]}") from None


def _check_structure(data: bytes, what: str) -> None:
    """Counts brackets, commas, strings and digits, which takes no more memory than the text itself."""
    if data.count(b'"') > 2 * MAX_STRINGS:
        raise FileError(f"{what}: more than {MAX_STRINGS} strings")
    bare = _STRING.sub(b"", data)
    brackets = np.frombuffer(bare.translate(None, _BRACKETS), np.uint8)
    if len(brackets) + bare.count(b",") > MAX_TOKENS:
        raise FileError(f"{what}: more than {MAX_TOKENS} items")
    steps = np.where((brackets == ord("[")) | (brackets == ord("{")), 1, -1)
    if len(steps) and int(np.cumsum(steps).max()) > MAX_DEPTH:
        raise FileError(f"{what}: nested deeper than {MAX_DEPTH}")
    if _LONG_NUMBER.search(bare):
        raise FileError(f"{what}: a number of 40 digits or more")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        double = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FileError(f"key {double[:80]!a} stands twice")
    return found


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise FileError(f"{text[:40]} is no finite number")
    return value


def _refuse(text: str) -> float:
    raise FileError(f"{text} is no finite number")


def dump(data: Any, what: str) -> bytes:
    """Writes JSON without spaces, keys in their order, in UTF-8.

    Raises:
        FileError: if the data hold what JSON can't.
    """
    try:
        text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise FileError(f"{what}: can't be written as JSON: {str(error)[:120]}") from None
    _check_structure(text, what)
    return text


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """Returns facts as what JSON holds: tuples as lists, NumPy's numbers as numbers, and null for NaN and infinity.

    Args:
        value: nested mappings, sequences, numbers, strings, None.
        where: for the message.
        depth: how deep within.

    Raises:
        FileError: an object of another type, a key that is no string, too deep a nesting.

    >>> plain({"snr": float("inf"), "shape": (2, 3)}, "facts")
    {'snr': None, 'shape': [2, 3]}
    """
    if depth > MAX_DEPTH - 8:
        raise FileError(f"{where[:200]}: nested too deep for a file")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise FileError(f"{where[:200]}: key {key!r} is no string")
        return {key: plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    raise FileError(f"{where[:200]}: a file can't hold a {type(value).__name__}; give numbers, strings, lists, tables")
