"""Inputs of a network from the command line: shapes to be filled, or files of arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lilliput.cli.terminal import UsageError
from lilliput.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FILES = (".npy", ".npz", ".safetensors")
SPEC = re.compile(r"(?:([A-Za-z_]\w*)=)?(\d+(?:x\d+)*)(?::(\w+))?")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
MOST = 1 << 31


def inputs_of(words: Sequence[str] | None) -> Any:
    """Makes inputs.

    Args:
        words: shapes such as `1x3x224x224:float32` or `ids=2x16:int64`, several in a word if spaces stand between, or
            one file.

    Returns:
        A tensor; a tuple of several; a dict if they have names; None without words. Floats are normal random numbers,
        always the same; integers and bools are ones, which suit an index as well as a mask.

    Raises:
        UsageError: a shape that can't be read.
        DataError: a file that can't.

    >>> tuple(inputs_of(["2x3"]).shape), sorted(inputs_of(["ids=2x16:int64 mask=2x16:bool"]))
    ((2, 3), ['ids', 'mask'])
    """
    if not words:
        return None
    if len(words) == 1 and Path(words[0]).suffix in FILES:
        return arrays_of(Path(words[0]))
    named: list[tuple[str, Tensor]] = [_made(word) for text in words for word in text.split()]
    names = [name for name, _ in named if name]
    if not names:
        return named[0][1] if len(named) == 1 else tuple(tensor for _, tensor in named)
    if len(set(names)) != len(named):
        raise UsageError("--input: give each of several inputs a name of its own, or none of them one")
    return dict(named)


def _made(word: str) -> tuple[str, Tensor]:
    import torch

    found = SPEC.fullmatch(word)
    if not found:
        raise UsageError(f"--input '{word}' can't be read; write it as 1x3x224x224, or as ids=2x16:int64")
    name, code = found[1] or "", found[3] or "float32"
    if code not in DTYPES:
        raise UsageError(f"--input '{word}': no dtype '{code}'; there is {', '.join(DTYPES)}")
    shape = [int(size) for size in found[2].split("x")]
    if torch.Size(shape).numel() > MOST:
        raise UsageError(f"--input '{word}': more than {MOST} elements")
    dtype: torch.dtype = getattr(torch, code)
    if not dtype.is_floating_point:
        return name, torch.ones(shape, dtype=dtype)
    return name, torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def arrays_of(path: Path) -> Any:
    """Reads a tensor from .npy, or a dict of tensors from .npz or .safetensors; nothing is unpickled.

    Arrays that `numpy.savez` numbered by itself (`arr_0` ...) come back as a tuple.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of inputs")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import numpy
        import torch

        found = numpy.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return torch.from_numpy(found)
        tensors = {name: torch.from_numpy(found[name]) for name in found.files}
    except Exception as error:  # each format has errors of its own
        raise DataError(f"{path}: can't be read as arrays: {' '.join(str(error).split())[:200]}") from None
    if tensors and all(re.fullmatch(r"arr_\d+", name) for name in tensors):
        values = tuple(tensors.values())
        return values[0] if len(values) == 1 else values
    return tensors
