"""Follows the output of a layer to the activation function that comes next, as the model computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

PASSED = frozenset({"batch_norm", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout"})
"""Functions of one map that leave a channel a channel; what comes out is followed on."""

ACTIVATIONS = frozenset(
    {"relu", "relu_", "hardtanh", "hardtanh_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "selu"}
    | {"celu", "gelu", "silu", "mish", "hardswish", "sigmoid", "sigmoid_", "hardsigmoid", "tanh", "tanh_", "softplus"}
    | {"threshold", "threshold_"}
)


class Follow(TorchFunctionMode):
    """Calls back with the output of the activation function that takes a followed tensor, BatchNorm passed over."""

    def __init__(self, found: Callable[[Any, Tensor], None]) -> None:
        super().__init__()
        self.found = found
        self.followed: Any = WeakTensorKeyDictionary()

    def watch(self, tensor: Tensor, key: Any) -> None:
        """Follows a tensor; `key` is given back."""
        self.followed[tensor] = key

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Runs the function, and looks whether it took what is followed."""
        name = getattr(func, "__name__", "")
        watched = name in PASSED or name in ACTIVATIONS
        value = (args[0] if args else next(iter((kwargs or {}).values()), None)) if watched else None
        key = self.followed.get(value) if isinstance(value, Tensor) else None
        result = func(*args, **(kwargs or {}))
        if key is not None and isinstance(result, Tensor):
            self.followed.pop(value, None)
            if name in PASSED:
                self.watch(result, key)
            else:
                self.found(key, result)
        return result
