"""What a model's outputs cost on a batch, for criteria that ask how the cost changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from lilliput.core.errors import DataError
from lilliput.observe.divergence import tensors

Loss = Callable[[Any, Any], Tensor]
"""`loss(output, target)` -> scalar, the mean over the examples."""


def cost(output: Any, target: Any) -> Tensor:
    """Returns the mean cost of a batch: cross-entropy for class numbers, else the squared error.

    Args:
        output: a tensor, or a tuple, dict or dataclass whose first floating-point tensor counts.
        target: whole numbers (N,), or floats of the output's shape.

    Raises:
        DataError: there are no targets, or they fit neither.

    >>> import torch
    >>> cost(torch.zeros(2, 4), torch.tensor([1, 3]))
    tensor(1.3863)
    """
    found = next(tensors(output), None)
    if found is None:
        raise DataError("the model's outputs hold no floating-point tensor, so that there is no cost")
    if not isinstance(target, Tensor):
        raise DataError("needs targets: give (inputs, targets), or dicts with labels")
    if not target.dtype.is_floating_point and found.ndim >= 2 and target.shape == (len(found), *found.shape[2:]):
        return functional.cross_entropy(found, target.long())
    if target.shape == found.shape:
        return functional.mse_loss(found, target.to(found.dtype))
    raise DataError(
        f"targets of shape {tuple(target.shape)} and type {target.dtype} don't fit outputs of shape "
        f"{tuple(found.shape)}; give loss="
    )


def half_curvature(output: Any, target: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Returns what `cost` looks at, and S with S S^T the Hessian of `cost` by it, as a function that multiplies by S.

    For the squared error over n numbers S = sqrt(2 / n); for cross-entropy of m rows and with p = softmax of one,
    S v = (r v - p (r . v)) / sqrt(m), r = sqrt(p): then S S^T = (diag p - p p^T) / m. It doesn't depend on the classes
    that are asked for, but for rows without one (-100).

    Args:
        output: as for `cost`.
        target: as for `cost`.

    Raises:
        DataError: as for `cost`.

    >>> import torch
    >>> output, half = half_curvature(torch.zeros(1, 2), torch.tensor([1]))
    >>> torch.stack([half(torch.eye(2)[[i]])[0] for i in range(2)])  # its square is diag p - p p^T, p = (1/2, 1/2)
    tensor([[ 0.3536, -0.3536],
            [-0.3536,  0.3536]])
    """
    cost(output, target)
    found = next(tensors(output))
    if target.shape == found.shape:
        return found, lambda vector: vector * (2 / found.numel()) ** 0.5
    part: Tensor = found.detach().softmax(1)
    root, asked = part.sqrt(), (target != -100).unsqueeze(1)
    scale: Tensor = asked / asked.sum().clamp(min=1).sqrt()

    def half(vector: Tensor) -> Tensor:
        turned = root * vector
        return (turned - part * turned.sum(1, keepdim=True)) * scale.to(vector)

    return found, half


def examples(batch: Any) -> list[Any]:
    """Splits a batch into its examples, each a batch of one.

    >>> import torch
    >>> [(x.tolist(), y.tolist()) for x, y in examples((torch.tensor([1, 2]), torch.tensor([3, 4])))]
    [([1], [3]), ([2], [4])]
    """
    count = size(batch)
    return [_part(batch, place, count) for place in range(count)]


def size(batch: Any) -> int:
    """Returns how many examples a batch holds: the first length of its first tensor.

    Raises:
        DataError: it holds no tensor that could be split.
    """
    if isinstance(batch, Tensor):
        if batch.ndim:
            return len(batch)
    elif isinstance(batch, dict | list | tuple):
        for part in batch.values() if isinstance(batch, dict) else batch:
            if isinstance(part, Tensor | dict | list | tuple):
                return size(part)
    raise DataError("a batch holds no tensor that can be split into examples")


def _part(value: Any, place: int, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[place : place + 1] if value.ndim and len(value) == count else value
    if isinstance(value, dict):
        return {key: _part(item, place, count) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_part(item, place, count) for item in value)
    return value
