"""`largest` beside a stable sort, on many scores and few."""

import pytest
import torch

from lilliput.solve import selection
from lilliput.solve.selection import largest


def by_sorting(scores: torch.Tensor, count: int) -> torch.Tensor:
    order = torch.argsort(scores.flatten(), descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


SCORES = {
    "spread": lambda g: torch.randn(300, 1000, generator=g),
    "few values": lambda g: torch.randint(-2, 3, (300, 1000), generator=g).float(),
    "all magnitudes": lambda g: (
        torch.randn(300_000, generator=g) * 10.0 ** torch.randint(-38, 38, (300_000,), generator=g)
    ),
    "one value": lambda g: torch.full((300_000,), 0.5),
    "dead ones": lambda g: (
        torch.randn(300_000, generator=g).abs().masked_fill(torch.rand(300_000, generator=g) < 0.9, -torch.inf)
    ),
    "two chunks": lambda g: torch.rand(1100, 1000, generator=g).mul_(1000).round_(),
}


@pytest.mark.parametrize("name", SCORES)
def test_many_scores_are_marked_as_by_a_stable_sort(name: str) -> None:
    scores = SCORES[name](torch.Generator().manual_seed(1))
    for count in (0, 1, 2, 12345, scores.numel() // 2, scores.numel() - 1, scores.numel()):
        assert torch.equal(largest(scores, count), by_sorting(scores, count)), count


def test_zero_equals_minus_zero() -> None:
    scores = torch.zeros(300_000)
    scores[::2] = -0.0
    assert torch.equal(largest(scores, 5), by_sorting(scores, 5))


def test_it_is_the_counting_that_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small arrays too, forced through the passes: every count of a few scores with ties."""
    monkeypatch.setattr(selection, "SORTED", 0)
    monkeypatch.setattr(selection, "PIECE", 3)
    monkeypatch.setattr(torch, "argsort", None)
    scores = torch.tensor([[2.0, -1.0, 2.0, 0.0], [2.0, -torch.inf, 1e-30, 0.0]])
    expected = [0, 2, 4, 6, 3, 7, 1, 5]
    for count in range(9):
        marked = largest(scores, count).flatten().nonzero().flatten().tolist()
        assert marked == sorted(expected[:count])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    scores = torch.randn(300_000, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(largest(scores, 1000), by_sorting(scores, 1000))
