"""The spread of weights on which every weight method is tried, and settings and refusals in common words."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from lilliput.core.errors import MethodError

Result = TypeVar("Result")


def generator(seed: int) -> torch.Generator:
    """Returns a seeded generator, so that every run sees the same weights."""
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Returns weights ~ N(0, 0.1^2) of this shape, none of them zero."""
    return torch.randn(shape, generator=generator(seed)) * 0.1


def decaying(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Returns a matrix with singular values 1, 1/2, 1/4 ..., as few trained layers have but factorizations like."""
    left, _ = torch.linalg.qr(gaussian(rows, min(rows, columns), seed=seed))
    right, _ = torch.linalg.qr(gaussian(columns, min(rows, columns), seed=seed + 1))
    matrix: Tensor = (left * 0.5 ** torch.arange(min(rows, columns))) @ right.T
    return matrix


def weights() -> dict[str, Tensor]:
    """Returns small weights of every sort that a model may hold, by name; the same ones each time."""
    outlier = gaussian(12, 16, seed=5)
    outlier[3, 4] = 1e4
    zeros = gaussian(12, 16, seed=6)
    zeros[torch.rand(12, 16, generator=generator(7)) < 0.6] = 0
    return {
        "linear": gaussian(16, 24),
        "conv": gaussian(8, 4, 3, 3, seed=1),
        "conv1d": gaussian(6, 4, 3, seed=2),
        "depthwise": gaussian(8, 1, 3, 3, seed=3),
        "grouped": gaussian(8, 2, 3, 3, seed=4),
        "low_rank": decaying(20, 24, seed=8),
        "low_rank_conv": decaying(12, 36, seed=9).reshape(12, 4, 3, 3),
        "vector": gaussian(13, seed=10),
        "scalar": torch.tensor(0.3),
        "one_element": torch.tensor([[-0.7]]),
        "empty": torch.empty(0, 5),
        "empty_rows": torch.empty(5, 0),
        "constant": torch.full((6, 8), 0.25),
        "all_zero": torch.zeros(4, 6),
        "many_zeros": zeros,
        "negative": -gaussian(6, 8, seed=11).abs(),
        "outlier": outlier,
        "largest": torch.tensor([[3.4e38, -3.4e38, 1.0], [3.4e38, 3.4e38, 3.4e38]]),
        "subnormal": torch.tensor([[1e-45, -3e-45, 0.0], [1e-40, 2e-39, -1e-38]]),
        "in_float16": gaussian(8, 12, seed=12).half(),
        "in_bfloat16": gaussian(8, 12, seed=13).bfloat16(),
        "in_float64": gaussian(8, 12, seed=14).double(),
        "transposed": gaussian(12, 10, seed=15).T,
        "strided": gaussian(8, 12, seed=16)[::2, 1::3],
    }


@cache
def large() -> dict[str, Tensor]:
    """Returns larger weights with the tails of trained ones, for laws on the mean error."""
    uniform = torch.rand(96, 128, generator=generator(20)) - 0.5
    return {
        "gaussian": gaussian(128, 128, seed=21),
        "laplace": -0.05 * uniform.sign() * torch.log1p(-2 * uniform.abs().clamp(max=0.4999)),
        "conv": gaussian(32, 16, 3, 3, seed=22) * torch.linspace(0.2, 2, 32)[:, None, None, None],
        "low_rank": decaying(96, 128, seed=23) + 0.001 * gaussian(96, 128, seed=25),
    }


def settings_of(cls: Any) -> tuple[Any, ...]:
    """Returns every setting of `choices()`, or the defaults alone where there are none."""
    return tuple(cls.choices()) or (cls(),)


def tried(function: Callable[[], Result], what: str) -> Result | None:
    """Returns the result, or None where the method refuses by a MethodError of one clear line.

    Raises:
        AssertionError: if it refuses by anything else, or in several lines or none.
    """
    try:
        return function()
    except MethodError as refusal:
        line = str(refusal)
        if not line or "\n" in line:
            raise AssertionError(f"{what}: a refusal must be one line, not {line!r}") from refusal
        return None
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} instead of a MethodError: {error}") from error


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal bit for bit in shape, dtype and values (0 and -0 count as equal)."""
    return left.dtype == right.dtype and left.shape == right.shape and bool(torch.equal(left, right))
