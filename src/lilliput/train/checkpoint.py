"""Checkpoints of a training: one safetensors file with JSON in its metadata, written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lilliput.core.errors import FileError, LilliputWarning, ModelError
from lilliput.train.gradients.state import HookState

KEY = "lilliput.training"
VERSION = 1


def save(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    position: Mapping[str, Any],
    beside: nn.Module | None = None,
) -> None:
    """Writes the state of model and optimizer, and where the training stands.

    Args:
        path: the file; one that is there is replaced once the new one is safe on the disk.
        model: its `state_dict` is saved, what is attached to it included.
        optimizer: the state of each parameter goes by the parameter's name in the model.
        position: JSON-able.
        beside: what is trained with it and is no part of it.

    Raises:
        FileError: if it can't be written; nothing is left behind then.
    """
    tensors = {f"model/{name}": _own(tensor) for name, tensor in model.state_dict().items()}
    if beside is not None:
        tensors |= {f"beside/{name}": _own(tensor) for name, tensor in beside.state_dict().items()}
    plain: dict[str, dict[str, Any]] = {}
    for name, parameter in _named(model, optimizer):
        for field, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{field}"] = _own(value)
            else:
                plain.setdefault(name, {})[field] = value
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    text = json.dumps({"version": VERSION, "position": position, "plain": plain, "groups": groups})
    _replace(path, safetensors.torch.save(tensors, {KEY: text}))


def save_hook(path: Path, hook: HookState, step: int) -> None:
    """Writes the state of a communication hook of this process.

    Args:
        path: the file; replaced as by `save`.
        hook: its residuals and counts are saved.
        step: optimizer steps that are over.

    Raises:
        FileError: if it can't be written.
    """
    state = hook.state_dict()
    tensors = {name: _own(tensor) for name, tensor in state.pop("memory").items()}
    _replace(path, safetensors.torch.save(tensors, {KEY: json.dumps({"version": VERSION, "at": step, "hook": state})}))


def load_hook(path: Path, hook: HookState, step: int) -> None:
    """Puts a hook in the state that was saved after this step; without one it starts with nothing kept.

    Args:
        path: of `save_hook`; may be missing, or of another step if the process was killed in between.
        hook: changed in place; in any case it stands at `step`, as those of all other processes do.
        step: optimizer steps that the checkpoint of the model has seen.

    Raises:
        FileError: if the file is no state of a hook.
        ModelError: if it is one of another model or number of processes.
    """
    header, tensors = _read(path) if path.exists() else ({}, {})
    if header and "hook" not in header:
        raise FileError(f"{path}: no state of a communication hook")
    if header.get("at") == step:
        hook.load_state_dict({**header["hook"], "memory": tensors})
    else:
        hook.memory.clear()
        message = f"{path}: no state of the hook at step {step}: what this process had not sent yet is lost"
        warnings.warn(message, LilliputWarning, stacklevel=2)
    hook.step = step


def peek(path: Path) -> dict[str, Any]:
    """Returns the position that a checkpoint holds.

    Raises:
        FileError: if the file is no checkpoint of a training.
    """
    return dict(_read(path)[0]["position"])


def load(path: Path, model: nn.Module, optimizer: Optimizer, beside: nn.Module | None = None) -> None:
    """Puts model, optimizer and what was trained beside the model in the state that a checkpoint holds.

    Raises:
        FileError: if the file is no checkpoint of a training.
        ModelError: if it is one of another model or recipe; then nothing is changed but shapes of trained parts.
    """
    header, tensors = _read(path)
    state = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
    own = model.state_dict()
    if state.keys() != own.keys() or len(header["groups"]) != len(optimizer.param_groups):
        other = sorted(state.keys() ^ own.keys())[:3]
        raise ModelError(f"{path}: a checkpoint of another model, recipe or optimizer ({', '.join(other)} ...)")
    others = {name.removeprefix("beside/"): t for name, t in tensors.items() if name.startswith("beside/")}
    try:
        model.load_state_dict(state)
        if beside is not None:
            beside.load_state_dict(others)
    except RuntimeError as error:
        raise ModelError(f"{path}: a checkpoint of another model: {' '.join(str(error).split())[:200]}") from None
    for group, saved in zip(optimizer.param_groups, header["groups"]):
        group.update({k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in saved.items()})
    for name, parameter in _named(model, optimizer):
        prefix = f"optimizer/{name}/"
        found: dict[str, Any] = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        # A step counter stays on the CPU; what has the parameter's shape goes to its device.
        found = {k: t.to(parameter.device) if t.shape == parameter.shape and t.ndim else t for k, t in found.items()}
        found |= header["plain"].get(name, {})
        if found:
            optimizer.state[parameter] = found


def _named(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, nn.Parameter]]:
    """The optimizer's parameters by their names in the model; those of others (a loss) by number."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        yield names.get(id(parameter), f"#{number}"), parameter


def _own(tensor: Tensor) -> Tensor:
    # Tied weights share memory, which the format doesn't allow.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _replace(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise FileError(f"{path}: the checkpoint can't be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "null"))
            if not isinstance(header, dict) or header.get("version") != VERSION:
                raise FileError(f"{path}: no checkpoint of a training, or one of another version")
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: no checkpoint of a training, or a damaged one: {error}") from None
