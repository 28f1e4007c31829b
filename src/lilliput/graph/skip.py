"""What stands in a model where a whole residual block was."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lilliput.core.cut import Skip
from lilliput.core.errors import ModelError


class Passed(nn.Module):
    """Gives back its first argument.

    Args:
        skip: what is still done to it.

    >>> Passed(Skip("block", "relu"))(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """

    def __init__(self, skip: Skip) -> None:
        super().__init__()
        self.then, self.packed = skip.then, skip.packed

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the first argument; others, as a mask, are of no use to nothing."""
        x = args[0] if args else next(iter(kwargs.values()))
        x = torch.relu(x) if self.then == "relu" else x
        return (x,) if self.packed else x


def check_skip(model: nn.Module, skip: Skip) -> None:
    """Raises ModelError unless the model has the module."""
    if skip.module not in dict(model.named_modules(remove_duplicate=False)) or not skip.module:
        raise ModelError(f"a cut removes the block {skip.module!r}, which the model doesn't have")


def put_skip(model: nn.Module, skip: Skip) -> None:
    """Puts what gives back its argument in a block's place.

    Args:
        model: has the module; see `check_skip`.
        skip: which, and how.
    """
    parent, _, leaf = skip.module.rpartition(".")
    holder = model.get_submodule(parent)
    passed = Passed(skip)
    passed.training = holder._modules[leaf].training  # type: ignore[union-attr]
    holder._modules[leaf] = passed


def inside(name: str, skips: tuple[Skip, ...]) -> bool:
    """Whether a parameter, or a module, belongs to one of the blocks.

    >>> inside("a.1.weight", (Skip("a.1"),)), inside("a.10.weight", (Skip("a.1"),))
    (True, False)
    """
    return any(name == skip.module or name.startswith(f"{skip.module}.") for skip in skips)
