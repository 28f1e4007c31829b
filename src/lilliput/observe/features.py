"""What some layers of a model give while it is called, by the layers' names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from lilliput.core.errors import DataError, ModelError
from lilliput.observe.divergence import tensors


def check_layers(model: nn.Module, names: Iterable[str], whose: str) -> None:
    """Raises ModelError if a model has no layer of such a name; names the nearest.

    Args:
        model: any module.
        names: as in `named_modules`; `""` is the model itself.
        whose: for the message, such as `"student"`.
    """
    known = [name for name, _ in model.named_modules() if name and "parametrizations" not in name.split(".")]
    for name in names:
        if name and name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.4) or known[:3]
            raise ModelError(f"the {whose} has no layer '{name}'; there is {', '.join(near) or 'none'}")


@contextmanager
def features(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Collects outputs of layers for as long as the context lasts, with their gradient history.

    Args:
        model: called within the context; the module inside a `DistributedDataParallel`, not that itself.
        names: of its layers.

    Yields:
        By name the first floating-point tensor of what the layer gave last; empty before the call.

    Raises:
        DataError: a layer gave no tensor.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> import torch
    >>> with features(model, ["0"]) as found:
    ...     _ = model(torch.ones(1, 2))
    >>> found["0"].shape
    torch.Size([1, 3])
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in dict.fromkeys(names):
            handle = model.get_submodule(name).register_forward_hook(partial(_keep, found, name))
            stack.callback(handle.remove)
        yield found


def _keep(found: dict[str, Tensor], name: str, module: nn.Module, args: Any, output: Any) -> None:
    value = next(tensors(output), None)
    if value is None:
        raise DataError(f"layer '{name}' ({type(module).__name__}) gives no floating-point tensor")
    found[name] = value
