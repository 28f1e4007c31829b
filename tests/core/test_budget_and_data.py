"""Budgets, and what users bring as data."""

import pytest
import torch
from torch import nn

from lilliput.core.budget import Budget
from lilliput.core.checks import check_range, check_weight
from lilliput.core.data import call, first, inputs_of, target_of
from lilliput.core.errors import BudgetError, DataError, MethodError


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (5, 5),
        ("5", 5),
        ("1 MB", 10**6),
        ("1.5 mb", 1500000),
        (".5kB", 500),
        ("2 MiB", 2 << 20),
        ("0.25x", 250),
        ("7 B", 7),
    ],
)
def test_sizes(size, expected):
    assert Budget(size=size).bytes(original=1000) == expected


@pytest.mark.parametrize(
    "size", [0, -5, True, 1.5, "", "MB", "1 XB", "-1 MB", "1e6", "nan", "inf", "9" * 400, "0.1 kb x", 2**63]
)
def test_sizes_that_cannot_be_read(size):
    with pytest.raises(BudgetError) as raised:
        Budget(size=size)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((5, 5), ("5", 5), ("300M", 300 * 10**6), ("1.5 k", 1500), (".2g", 2 * 10**8)),
        *(("50%", 500), ("0.25x", 250), ("2x fewer", 500), ("3.0 X fewer", 333), ("150 %", 1500)),
    ],
)
@pytest.mark.parametrize("what", ["macs", "parameters"])
def test_counts(what, text, expected):
    assert Budget(**{what: text}).count(what, original=1000) == expected
    assert Budget(**{what: text}).counts == (what,)


@pytest.mark.parametrize(
    "text", [0, -5, True, 1.5, "", "M", "1 XB", "-1M", "1e6", "nan", "50% fewer", "2 fewer", "0%", 2**63, "0x fewer"]
)
def test_counts_that_cannot_be_read(text):
    with pytest.raises(BudgetError) as raised:
        Budget(macs=text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("drop", [-0.1, float("nan"), float("inf")])
def test_drops_that_make_no_sense(drop):
    with pytest.raises(BudgetError, match="max_drop"):
        Budget(max_drop=drop)


def test_no_size_asked_for():
    with pytest.raises(BudgetError):
        Budget(max_drop=0.1).bytes(10)


def test_batches():
    x, y = torch.ones(2), torch.zeros(2)
    assert inputs_of((x, y)) is x
    assert target_of([x, y]) is y
    assert inputs_of((x,)) is x
    assert inputs_of((x, x, y)) == (x, x, y)
    assert inputs_of(x) is x
    assert target_of(x) is None
    assert inputs_of({"a": x, "labels": y}) == {"a": x}
    assert target_of({"a": x, "labels": y}) is y
    assert target_of({"a": x}) is None


def test_first():
    assert first([3, 4]) == 3
    assert first(iter([5])) == 5
    tensor = torch.ones(2)
    assert first(tensor) is tensor
    with pytest.raises(DataError, match="empty"):
        first([])
    with pytest.raises(DataError, match="not int"):
        first(3)


def test_call():
    class Two(nn.Module):
        def forward(self, a, b=0):
            return a + b

    assert call(Two(), {"a": 1, "b": 2}) == call(Two(), (1, 2)) == call(Two(), 3) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(bad):
    with pytest.raises(MethodError, match="1 of 3 weights are NaN or infinite"):
        check_weight(torch.tensor([1.0, bad, 2.0]), "x")
    with pytest.raises(MethodError, match=r"floating-point weights, not torch\.int64"):
        check_weight(torch.tensor([1]), "x")
    check_weight(torch.empty(0), "x")


def test_ranges():
    check_range("x", "a", 1, 1, 2)
    check_range("x", "a", 2, 1, 2)
    for value, open_high in ((2, True), (0.9, False), (float("nan"), False)):
        with pytest.raises(MethodError, match="a = "):
            check_range("x", "a", value, 1, 2, open_high)
