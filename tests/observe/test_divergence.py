"""How outputs are compared: closed forms."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lilliput.core.errors import DataError
from lilliput.observe.divergence import divergence, kl, measure_for, relative_squared, tensors


def test_kl_has_its_closed_form() -> None:
    reference = torch.tensor([[math.log(0.5), math.log(0.5)], [math.log(0.9), math.log(0.1)]])
    output = torch.tensor([[math.log(0.25), math.log(0.75)], [math.log(0.9), math.log(0.1)]])
    expected = (0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)) / 2
    assert kl(reference, output) == pytest.approx(expected, rel=1e-6)
    # A constant added to all logits changes nothing.
    assert kl(reference, output + 7) == pytest.approx(expected, rel=1e-5)


def test_relative_squared_is_the_mean_over_tensors() -> None:
    before = (torch.tensor([3.0, 4.0]), {"b": torch.tensor([1.0])})
    after = (torch.tensor([3.0, 3.0]), {"b": torch.tensor([3.0])})
    assert relative_squared(before, after) == (1 / 25 + 4) / 2
    assert relative_squared(torch.zeros(2), torch.ones(2)) == 2


def test_tensors_are_found_in_every_kind_of_output() -> None:
    @dataclass
    class Output:
        hidden: Tensor
        count: int

    found = list(tensors([Output(torch.ones(1), 2), None, torch.tensor([3])]))
    assert [t.tolist() for t in found] == [[1.0]]


@pytest.mark.parametrize(
    ("output", "target", "expected"),
    [
        (torch.randn(4, 10), torch.tensor([0, 9, 1, 2]), "kl"),
        (torch.randn(4, 10), torch.tensor([0, 10, 1, 2]), "squared"),
        (torch.randn(4, 10), torch.randn(4), "squared"),
        (torch.randn(4, 10), None, "kl"),
        (torch.nn.functional.normalize(torch.randn(4, 10)), None, "squared"),
        (torch.randn(4, 1), None, "squared"),
        (torch.randn(2, 4, 10), None, "squared"),
        ((torch.randn(4, 10), torch.randn(4, 2)), None, "squared"),
    ],
)
def test_logits_are_told_from_other_outputs(output: object, target: object, expected: str) -> None:
    assert measure_for(output, target) == expected


def test_nothing_to_compare_is_said() -> None:
    with pytest.raises(DataError, match="no floating-point tensor"):
        measure_for(torch.tensor([1]), None)


def test_an_output_of_nan_is_infinitely_far() -> None:
    assert divergence(torch.ones(2, 2), torch.full((2, 2), math.nan), "kl") == math.inf
    assert divergence(torch.ones(2, 2), torch.full((2, 2), math.nan), "squared") == math.inf
