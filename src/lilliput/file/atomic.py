"""Writes a file so that it appears whole under its name, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from lilliput.core.errors import FileError

if TYPE_CHECKING:
    from lilliput.file.leaf import View


def write_text(path: str | PathLike[str], text: str) -> int:
    """Writes text in UTF-8; see `write_pieces`."""
    return write_pieces(path, (text.encode("utf-8", "replace"),))


def write_pieces(path: str | PathLike[str], pieces: Iterable[bytes | View]) -> int:
    """Writes bytes atomically; what was there is replaced once the new ones are safe on the disk.

    Args:
        path: the file.
        pieces: its bytes, in order.

    Returns:
        The size in bytes.

    Raises:
        FileError: the file can't be written (the disk is full, the folder is missing or read-only); nothing is left
            behind then.
    """
    target = Path(os.path.realpath(path))
    try:
        _check_target(target)
        return _write_beside(target, pieces)
    except OSError as error:
        raise FileError(f"{os.fspath(path)}: can't be written: {error.strerror or error}; nothing was left") from None


def _check_target(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(2, f"the folder {target.parent} doesn't exist")
    if target.exists() and not stat.S_ISREG(target.stat().st_mode):
        raise IsADirectoryError(21, "it is a folder or a device, not a file")


def _write_beside(target: Path, pieces: Iterable[bytes | View]) -> int:
    """Writes to a new file in the same folder, and renames it once its bytes are on the disk."""
    beside = target.with_name(f".lilliput-{secrets.token_hex(8)}.part")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            size = sum(file.write(piece) for piece in pieces)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            beside.chmod(stat.S_IMODE(target.stat().st_mode))
        beside.replace(target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return size


def write_folder(path: str | PathLike[str], made: Path) -> None:
    """Copies a folder so that it appears whole under its name; one of the same kind that was there is replaced.

    Args:
        path: where to.
        made: the folder. One that is replaced must hold a file that this one holds, too: nothing else goes by mistake.

    Raises:
        FileError: it can't be written; nothing is left behind then, and what was there stays.
    """
    target = Path(os.path.realpath(path))
    beside, gone = (target.with_name(f".lilliput-{secrets.token_hex(8)}.{word}") for word in ("part", "gone"))
    try:
        known = target.is_dir() and any((target / one.name).exists() for one in made.iterdir())
        if target.exists() and not known:
            raise FileExistsError(17, "something else is there")
        shutil.copytree(made, beside)
        if target.exists():
            target.rename(gone)
        try:
            beside.rename(target)
        except OSError:
            if gone.exists():
                gone.rename(target)
            raise
    except (OSError, shutil.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise FileError(f"{os.fspath(path)}: can't be written: {why}; nothing was left") from None
    finally:
        for one in (beside, gone):
            shutil.rmtree(one, ignore_errors=True)
