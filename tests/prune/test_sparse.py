"""A mask is state: it stays where it already has the pattern's structure, and only there."""

import sys

import pytest
import torch

from lilliput.core import method
from lilliput.core.errors import MethodError
from lilliput.prune.magnitude import Magnitude
from lilliput.prune.sparse import fits, mask_of
from lilliput.testing import pattern
from lilliput.testing.spread import gaussian

FEW_OF_FOUR = '''
"""Of each four neighbours the best few."""
from dataclasses import dataclass
import torch


@dataclass(frozen=True)
class FewOfFour:
    def select(self, scores, sparsity):
        groups = torch.nn.functional.pad(scores.reshape(-1), (0, -scores.numel() % 4), value=-torch.inf).reshape(-1, 4)
        ranks = groups.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return (ranks < 4 - round(4 * sparsity)).reshape(-1)[: scores.numel()].reshape(scores.shape)
'''


@pytest.fixture
def few_of_four(monkeypatch, tmp_path):
    """A structured pattern in a file of its own, without `fits`."""
    import lilliput.prune as package

    (tmp_path / "few_of_four.py").write_text(FEW_OF_FOUR)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    yield method.find("prune", "few_of_four")
    sys.modules.pop("lilliput.prune.few_of_four", None)
    method._found.cache_clear()


def most_alive(mask):
    return int(mask.reshape(-1, 4).sum(1).max())


def test_the_pattern_of_this_test_is_sound(few_of_four):
    pattern.check(few_of_four)


def test_a_mask_with_zeros_enough_but_of_another_structure_is_not_kept(few_of_four):
    weight = gaussian(16, 24)
    first = Magnitude(sparsity=0.6).pack(weight)
    assert most_alive(mask_of(first)) == 4
    second = Magnitude(sparsity=0.5, pattern="few_of_four").pack(weight, prior=first)
    assert most_alive(mask_of(second)) == 2
    assert not bool((mask_of(second) & ~mask_of(first)).any())
    assert torch.equal(second.parts["values"], weight[mask_of(second)])


def test_a_mask_of_its_own_structure_stays_while_weights_move(few_of_four):
    step, moved = Magnitude(sparsity=0.5, pattern="few_of_four"), gaussian(16, 24, seed=3)
    first = step.pack(gaussian(16, 24))
    assert torch.equal(mask_of(step.pack(moved, prior=first)), mask_of(first))
    # More zeros than the pattern asks for do no harm.
    thinner = Magnitude(sparsity=0.75, pattern="few_of_four").pack(moved, prior=first)
    assert most_alive(mask_of(thinner)) == 1
    assert torch.equal(mask_of(step.pack(gaussian(16, 24), prior=thinner)), mask_of(thinner))


def test_without_structure_the_number_counts(few_of_four):
    structured = Magnitude(sparsity=0.5, pattern="few_of_four").pack(gaussian(16, 24))
    again = Magnitude(sparsity=0.5).pack(gaussian(16, 24, seed=3), prior=structured)
    assert torch.equal(mask_of(again), mask_of(structured))
    assert not fits(method.find("prune", "unstructured")(), mask_of(structured), 0.6)


def test_a_threshold_for_single_weights_makes_no_structure(few_of_four):
    with pytest.raises(MethodError, match="give a sparsity to few_of_four"):
        Magnitude(quality=1.0, pattern="few_of_four")
