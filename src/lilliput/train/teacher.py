"""A large teacher's logits, computed once and kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from os import PathLike, fspath
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lilliput.core.data import call, inputs_of, logits_of
from lilliput.core.errors import DataError, FileError
from lilliput.file.atomic import write_pieces

KEY = "lilliput.teacher"
VERSION = "1"


class CachedLogits:
    """A teacher that looks up what it was taught to say; call it with inputs, or give it to `fit` as the teacher.

    An example is found by a digest of its bytes, in whatever order and batch it comes. So it must be the very example
    that was cached: without random augmentation, or with as many passes over it as were cached. The file is a
    safetensors file of two tensors, `keys` (I64, examples x 2) and `logits`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> x = torch.randn(4, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     teacher = CachedLogits.write(Path(folder) / "teacher.safetensors", nn.Linear(3, 2), [x])
    >>> teacher(x[[2, 0]]).shape
    torch.Size([2, 2])
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        """Reads the file.

        Raises:
            FileError: it is missing, damaged, or something else.
        """
        self.path = fspath(path)
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                if (file.metadata() or {}).get(KEY) != VERSION:
                    raise FileError(f"{self.path}: holds no teacher's logits, or those of another version")
                keys, self.logits = file.get_tensor("keys"), file.get_tensor("logits")
        except (OSError, safetensors.SafetensorError) as error:
            raise FileError(f"{self.path}: no file of a teacher's logits, or a damaged one: {error}") from None
        fits = keys.dtype == torch.int64 and keys.shape == (len(self.logits), 2) and self.logits.ndim > 1
        if not fits or not self.logits.dtype.is_floating_point:
            raise FileError(f"{self.path}: its keys and logits don't fit one another")
        self.places = {tuple(key): place for place, key in enumerate(keys.tolist())}

    @classmethod
    def write(
        cls,
        path: str | PathLike[str],
        teacher: Callable[..., Any],
        data: Iterable[Any],
        dtype: torch.dtype = torch.float32,
    ) -> CachedLogits:
        """Runs a teacher over data once, without gradients and in eval mode, and keeps its logits.

        Args:
            path: the file; one that is there is replaced.
            teacher: a module, or anything that can be called with the inputs.
            data: batches of inputs, (inputs, targets) or dicts; examples that come again are kept once.
            dtype: of the logits in the file; `torch.float16` halves it.

        Raises:
            DataError: if there is no data.
            FileError: if the file can't be written.
        """
        found: dict[tuple[int, int], Tensor] = {}
        training = [m for m in teacher.modules() if m.training] if isinstance(teacher, nn.Module) else []
        for module in training:
            module.training = False
        try:
            with torch.no_grad():
                for batch in data:
                    inputs = inputs_of(batch)
                    logits = logits_of(call(teacher, inputs)).detach().cpu().to(dtype)  # type: ignore[arg-type]
                    for key, row in zip(keys_of(inputs), logits, strict=True):
                        found.setdefault(key, row.clone())
        finally:
            for module in training:
                module.training = True
        if not found:
            raise DataError("the data is empty: a teacher's logits need examples")
        tensors = {"keys": torch.tensor(list(found), dtype=torch.int64), "logits": torch.stack(list(found.values()))}
        write_pieces(path, (safetensors.torch.save(tensors, {KEY: VERSION}),))
        return cls(path)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the logits of a batch, float32, on the inputs' device.

        Raises:
            DataError: if an example isn't in the file.
        """
        inputs = kwargs or (args[0] if len(args) == 1 else args)
        places = [self.places.get(key) for key in keys_of(inputs)]
        if None in places:
            raise DataError(
                f"example {places.index(None)} of a batch isn't in {self.path}: cache what the training will see, "
                "without random augmentation, or give the teacher itself"
            )
        device = next(iter(_tensors(inputs))).device
        logits: Tensor = self.logits[torch.tensor(places)].float().to(device)
        return logits


def keys_of(inputs: Any) -> list[tuple[int, int]]:
    """Returns 128 bits of BLAKE2b of each example's bytes, as two signed numbers.

    Args:
        inputs: a tensor, tuple or dict of tensors with the batch as their first axis.

    >>> keys_of(torch.zeros(2, 3))[0] == keys_of(torch.zeros(1, 3))[0]
    True
    """
    found = _tensors(inputs)
    if not found or any(not tensor.ndim or len(tensor) != len(found[0]) for tensor in found):
        raise DataError("inputs must be tensors whose first axis is the batch")
    digests = [hashlib.blake2b(digest_size=16) for _ in range(len(found[0]))]
    for tensor in found:
        kind = f"{tensor.dtype}{tuple(tensor.shape[1:])}".encode()
        rows = tensor.detach().cpu().contiguous().reshape(len(tensor), -1).view(torch.uint8).numpy()
        for digest, row in zip(digests, rows):
            digest.update(kind)
            digest.update(row.tobytes())
    return [_numbers(digest.digest()) for digest in digests]


def _numbers(digest: bytes) -> tuple[int, int]:
    return int.from_bytes(digest[:8], "little", signed=True), int.from_bytes(digest[8:], "little", signed=True)


def _tensors(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    values = [inputs[key] for key in sorted(inputs)] if isinstance(inputs, Mapping) else list(inputs)
    return [value for value in values if isinstance(value, Tensor)]
