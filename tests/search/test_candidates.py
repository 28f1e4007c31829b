"""The settings of a weight: found from the methods themselves, measured as the file measures them."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lilliput.core.method import WeightMethod, find_path, methods
from lilliput.core.packed import Packed, leaves, pack_steps, unpack
from lilliput.file.artifact import Artifact
from lilliput.file.write import sizes
from lilliput.search import candidates as module
from lilliput.search.candidates import Candidate, candidates, choices, extend, front, shared_candidates


@pytest.fixture(scope="module")
def weight() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 96, generator=generator) ** 3 * 0.1


@pytest.fixture(scope="module")
def found(weight: Tensor) -> tuple[Candidate, ...]:
    return candidates(weight)


def test_bytes_and_errors_are_those_of_the_file(weight: Tensor, found: tuple[Candidate, ...]) -> None:
    for candidate in found:
        form = pack_steps(weight, candidate.steps)
        table = sizes(Artifact({"w": form}))
        stored = [n for kind in ("coded", "floats") for part in table[kind].values() for n in part.values()]
        assert candidate.bytes == sum(stored)
        error = float((unpack(form) - weight).double().square().sum() / weight.double().square().sum())
        assert candidate.error == pytest.approx(error, rel=1e-5, abs=1e-15)


def test_each_is_larger_and_better_than_the_one_before(found: tuple[Candidate, ...]) -> None:
    assert [c.bytes for c in found] == sorted({c.bytes for c in found})
    assert [c.error for c in found] == sorted({c.error for c in found}, reverse=True)
    assert found[-1] == Candidate((), 24 * 96 * 4, 0.0)


def test_no_single_setting_is_much_better_than_the_front(weight: Tensor, found: tuple[Candidate, ...]) -> None:
    for method in choices():
        try:
            form = method.pack(weight)
        except module.MethodError:
            continue
        error = module.squared_error(weight, form) / float(weight.square().sum())
        size = module.stored_bytes(form)
        as_good = [c for c in found if c.bytes <= size * 1.01 and c.error <= error / module.DISTINCT]
        assert as_good or error >= module.MOST_ERROR, method


def test_compositions_are_found(weight: Tensor, found: tuple[Candidate, ...]) -> None:
    lengths = {len(candidate.steps) for candidate in found}
    assert lengths >= {0, 1, 2}
    assert any(hasattr(c.steps[0], "sparsity") and len(c.steps) > 1 for c in found if c.steps)


def test_a_low_rank_weight_is_factorized_and_quantized() -> None:
    generator = torch.Generator().manual_seed(1)
    product = torch.randn(128, 3, generator=generator) @ torch.randn(3, 128, generator=generator)
    found = candidates(product)
    kinds = {tuple(type(step).__name__ for step in c.steps[:2]) for c in found if c.error < 0.01}
    assert any(len(kind) == 2 and kind[0] == "Svd" for kind in kinds)


def test_the_same_weight_gives_the_same_settings(weight: Tensor, found: tuple[Candidate, ...]) -> None:
    assert candidates(weight.clone()) == found


def test_adding_a_step_equals_packing_by_all(weight: Tensor) -> None:
    steps = (choices_of("prune/magnitude")[-1], choices_of("quantize/uniform")[2], choices_of("quantize/float16")[0])
    step_by_step = extend(steps[:2], extend(steps[:1], steps[0].pack(weight), steps[1]), steps[2])
    at_once = pack_steps(weight, steps)
    assert isinstance(at_once, Packed)
    first, second = dict(leaves(step_by_step)), dict(leaves(at_once))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def choices_of(path: str) -> tuple[WeightMethod, ...]:
    return tuple(find_path(path).choices())


def test_all_methods_take_part_but_those_that_need_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [
        choice
        for listing in methods()
        if listing.kind in {"weight method", "criterion"}
        and find_path(listing.path).searched
        and not find_path(listing.path).needs
        for choice in find_path(listing.path).choices()
    ]
    assert list(choices()) == expected
    assert {type(c).__name__ for c in expected} >= {"Uniform", "KMeans", "Svd", "Magnitude", "Float16"}


def test_a_new_method_needs_no_list_edited(monkeypatch: pytest.MonkeyPatch, weight: Tensor) -> None:
    @dataclass(frozen=True)
    class Exact(type(choices_of("quantize/float16")[0])):  # type: ignore[misc]
        """Claims to hold any weight in one number."""

        def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
            return Packed("quantize/float16", tuple(weight.shape), weight.dtype, {"values": weight.clone()})

    monkeypatch.setattr(module, "stored_bytes", lambda form: 1 if isinstance(form, Packed) else 10**6)
    monkeypatch.setattr(module, "choices", lambda: (Exact(),))
    assert candidates(weight) == (Candidate((Exact(),), 1, 0.0),)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(4, 4),
        torch.ones(1, 1),
        torch.full((3, 5), 0.7),
        torch.randn(4, 4, dtype=torch.bfloat16),
        torch.tensor([[1e30, 1.0], [1e-30, -1.0]]),
    ],
)
def test_odd_weights_have_settings(weight: Tensor) -> None:
    found = candidates(weight)
    assert found[-1].error == 0
    assert all(0 <= candidate.error < 1 for candidate in found)


def test_biases_and_norms_are_only_changed_where_it_does_no_harm() -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = [torch.randn(40, generator=generator), torch.rand(7, generator=generator), torch.ones(9)]
    found = shared_candidates(vectors)
    assert found[0].bytes <= 2 * 47
    assert all(candidate.error <= module.HARMLESS for candidate in found)
    # Ones cost nothing in the file: all elements are equal.
    assert found[-1] == Candidate((), 4 * 47, 0.0)


def test_the_front_leaves_out_what_is_beaten() -> None:
    def each() -> Iterator[Candidate]:
        for size, error in [(5, 0.1), (4, 0.2), (6, 0.1), (4, 0.3), (3, 0.5)]:
            yield Candidate((), size, error)

    assert [(c.bytes, c.error) for c in front(list(each()))] == [(3, 0.5), (4, 0.2), (5, 0.1)]
