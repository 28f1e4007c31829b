"""Writes bytes beside its target and renames it, so that it appears whole or not at all."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

from lilliput.core.errors import FileError
from lilliput.file.write import _check_target, _write_beside


def write_text(path: str | PathLike[str], text: str) -> int:
    """Writes UTF-8 text atomically; see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: str | PathLike[str], data: bytes) -> int:
    """Writes bytes atomically; what was there is replaced once the new ones are safe on the disk.

    Returns:
        The size in bytes.

    Raises:
        FileError: the file can't be written (the disk is full, the folder is missing); nothing is left behind then.
    """
    target = Path(os.path.realpath(path))
    try:
        _check_target(target)
        _write_beside(target, (data,))
    except OSError as error:
        raise FileError(f"{os.fspath(path)}: can't be written: {error.strerror or error}; nothing was left") from None
    return len(data)
