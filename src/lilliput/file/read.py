"""Reads a file, trusting nothing in it: every bound is checked before memory is taken, and nothing in it is run."""

from __future__ import annotations

import io
import math
import os
import stat
import warnings
from collections.abc import Callable
from os import PathLike
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from lilliput.core.errors import FileError, LilliputError, LilliputWarning, NotInstalled
from lilliput.core.packed import Packed, weight_method
from lilliput.core.recipe import Recipe, from_data
from lilliput.file import entries, layout
from lilliput.file.artifact import Artifact
from lilliput.file.entries import Node
from lilliput.file.leaf import Leaf, contents
from lilliput.file.message import one_line
from lilliput.file.source import Opened, entries_of, open_file, table_of
from lilliput.file.survey import describe

Result = TypeVar("Result")


def read(path: str | PathLike[str], max_bytes: int = layout.MAX_BYTES) -> Artifact:
    """Reads a file that `write` wrote, or refuses it.

    Args:
        path: a regular file.
        max_bytes: cap on the bytes that its tensors take once decoded, and on those of the weights once unpacked.

    Returns:
        The artifact; its tensors are on the CPU and share memory with nothing. Steps of its recipe whose methods
        aren't installed are `Absent`, of which a `LilliputWarning` tells; no weight needs them.

    Raises:
        FileError: the file is missing, damaged, hostile, too large, of a newer format, or no Lilliput file at all.
    """
    return _named(path, lambda file, length: _artifact(open_file(file, length), max_bytes))


def loads(data: bytes, max_bytes: int = layout.MAX_BYTES) -> Artifact:
    """Reads a file's bytes; see `read`."""
    return _shown(lambda: _artifact(open_file(io.BytesIO(data), len(data)), max_bytes))


def inspect(path: str | PathLike[str]) -> dict[str, Any]:
    """Tells what can be told of a file without decoding a tensor; see `survey.describe` for what is in it.

    Raises:
        FileError: as `read`, as far as it can be seen without decoding.
    """
    return _named(path, lambda file, length: describe(open_file(file, length)))


def _named(path: str | PathLike[str], function: Callable[[BinaryIO, int], Result]) -> Result:
    """Calls a function with an open file and its length, and puts the file's name into what goes wrong."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise FileError("it is a folder or a device, not a file")
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            return _shown(lambda: function(file, length))
    except OSError as error:
        raise FileError(f"{os.fspath(path)}: can't be read: {error.strerror or error}") from None
    except FileError as error:
        raise FileError(f"{os.fspath(path)}: {error}") from error.__cause__


def _shown(function: Callable[[], Result]) -> Result:
    """Calls a function; whatever it quotes of the file when it refuses it can be shown."""
    try:
        return function()
    except FileError as error:
        raise FileError(one_line(error)) from error.__cause__


def _artifact(opened: Opened, max_bytes: int) -> Artifact:
    table, streams = table_of(opened)
    found, weights, constants = entries_of(opened, table, streams, max_bytes)
    aliases = entries.aliases(table.get("a", {}), weights, constants)
    cuts = entries.cuts(table.get("k", []))
    facts = table.get("f", {})
    if not isinstance(facts, dict):
        raise FileError("manifest: facts must be an object")
    recipe = _recipe(table["r"]) if "r" in table else Recipe()
    graph = _graph(table["g"], {*weights, *constants, *aliases}) if "g" in table else None
    for name, node in weights.items():
        _check_methods(name, node)
    try:
        tensors = _decoded(found.leaves, opened)
    except MemoryError:
        raise FileError(f"there isn't memory enough for the {found.decoded} bytes that the file declares") from None
    if recipe.absent:
        warnings.warn(
            f"the file's recipe names {', '.join(recipe.absent)}, which can't be carried out here, since a "
            "method isn't installed; the weights don't need it",
            LilliputWarning,
            stacklevel=2,
        )
    return Artifact(
        weights={name: _built(node, tensors) for name, node in weights.items()},
        recipe=recipe,
        graph=graph,
        constants={name: _plain(name, node, tensors) for name, node in constants.items()},
        cuts=cuts,
        sizes=entries.sizes(table.get("z", [])),
        aliases=aliases,
        facts=facts,
        quantizers=entries.quantizers(table.get("q", {})),
        blocks=entries.blocks(table.get("b", [])),
    )


def _recipe(data: Any) -> Recipe:
    try:
        return from_data(data, absent=True)
    except LilliputError as error:
        raise FileError(f"manifest: {one_line(error)}") from None
    except Exception as error:  # a method's own checks, met with a stranger's settings
        raise FileError(f"manifest: the recipe can't be read: {one_line(error)}") from error


def _graph(data: Any, names: set[str]) -> Any:
    from lilliput.graph.ir import Graph

    try:
        graph = Graph.from_json(data)
    except FileError as error:
        raise FileError(one_line(error)) from None
    for name in graph.tensors:
        if name not in names:
            raise FileError(f"graph: tensor {name[:80]!a} is not in the file")
    return graph


def _check_methods(name: str, node: Node | int) -> None:
    """Finds the methods of a packed weight; only those of this package and of installed plug-ins can be found."""
    if isinstance(node, int):
        return
    try:
        weight_method(node.method)
    except NotInstalled:
        raise FileError(
            f"manifest: {name} was packed by {node.method}, which isn't installed; install the package that brings it"
        ) from None
    except Exception as error:
        raise FileError(f"manifest: {name}: {one_line(error)}") from error
    for part in node.parts.values():
        _check_methods(name, part)


def _decoded(leaves: list[Leaf], opened: Opened) -> list[Tensor]:
    """Makes the tensor of every leaf."""
    streams = opened.buffers.get(layout.STREAMS, np.empty(0, np.uint8))
    tensors: list[Tensor] = []
    at = 0
    for leaf in leaves:
        dtype = layout.DTYPES[leaf.code]
        if leaf.how == "=":
            tensor = _filled(leaf, dtype)
        elif leaf.how == "copy":
            # By NumPy, which says in a way of its own that memory is short.
            tensor = torch.from_numpy(contents(tensors[int(leaf.argument)]).copy()).view(dtype).reshape(leaf.shape)
        elif leaf.how == "named":
            tensor = torch.from_numpy(opened.buffers[leaf.name]).view(dtype).reshape(leaf.shape)
        else:
            data = streams[at : at + int(leaf.argument)]
            at += len(data)
            raw = leaf.how == "raw"
            tensor = torch.from_numpy(data.copy()).view(dtype).reshape(leaf.shape) if raw else _coded(leaf, data, dtype)
        if leaf.part and dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
            raise FileError(f"{leaf.name}: holds NaN or infinity, which a packed weight can't")
        tensors.append(tensor)
    return tensors


def _filled(leaf: Leaf, dtype: torch.dtype) -> Tensor:
    """A tensor of equal elements, made through integers so that their bits stay as they are."""
    array = np.empty(leaf.shape, f"<i{dtype.itemsize}")
    array.fill(int.from_bytes(bytes.fromhex(str(leaf.argument)), "little", signed=True))
    return torch.from_numpy(array).view(dtype)


def _coded(leaf: Leaf, data: np.ndarray, dtype: torch.dtype) -> Tensor:
    from lilliput.coding import choose

    kind = np.dtype(bool) if dtype == torch.bool else torch.empty(0, dtype=dtype).numpy().dtype
    try:
        array = choose.decode(leaf.how, data.data, leaf.shape, kind)
    except FileError as error:
        raise FileError(f"{leaf.name}: {one_line(error)}") from None
    except (ValueError, IndexError, ArithmeticError, TypeError) as error:
        raise FileError(f"{leaf.name}: its {leaf.how} stream is damaged: {one_line(error)}") from error
    if array.dtype != kind or array.size != math.prod(leaf.shape):
        raise FileError(f"{leaf.name}: its {leaf.how} stream holds something else than the manifest says")
    return torch.from_numpy(array).reshape(leaf.shape)


def _built(node: Node | int, tensors: list[Tensor]) -> Packed | Tensor:
    if isinstance(node, int):
        return tensors[node]
    parts = {name: _built(part, tensors) for name, part in node.parts.items()}
    return Packed(node.method, node.shape, node.dtype, parts, node.settings)


def _plain(name: str, node: Node | int, tensors: list[Tensor]) -> Tensor:
    if not isinstance(node, int):
        raise FileError(f"manifest: constant {name[:80]!a} must be a plain tensor")
    return tensors[node]
