"""Results of long benchmarks, kept one by one, so that a run goes on where it stopped."""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from real_data import cache_directory


def place(benchmark: str, settings: Any) -> Path:
    """Returns the folder in the cache for a benchmark with these settings, a dataclass; others are another one."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return cache_directory() / benchmark / hashlib.sha256(text.encode()).hexdigest()[:12]


def result(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns what was measured, from its JSON file if that is there."""
    if not path.is_file():
        _replace(path, json.dumps(measure()).encode())
    return dict(json.loads(path.read_text()))


def network(path: Path, model: nn.Module, train: Callable[[nn.Module, Path], None]) -> nn.Module:
    """Returns a trained network in eval mode, from its file if that is there.

    Args:
        path: the file.
        model: not trained yet; it is filled.
        train: trains it in place, given the file of a checkpoint to go on from.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        train(model, path.with_suffix(".checkpoint"))
        part = path.with_suffix(f".{os.getpid()}.part")
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, part)
        os.replace(part, path)
    model.load_state_dict(load_file(path))
    return model.eval()


def machine() -> dict[str, str]:
    """Returns what a result should say of where it was measured."""
    return {"processor": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_bytes(data)
    os.replace(part, path)
