"""The suites fail methods that are broken: one bug each, in a method that is sound otherwise."""

import dataclasses

import pytest
import torch

from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.float16 import Float16
from lilliput.quantize.uniform import Uniform
from lilliput.testing import attached, criterion, weight_method


class ChangesInput(Float16):
    def pack(self, weight, stats=None, prior=None):
        packed = super().pack(weight)
        weight.mul_(2)
        return packed


class RefusesAll(Float16):
    def pack(self, weight, stats=None, prior=None):
        raise MethodError("not today")


class Crashes(Float16):
    def pack(self, weight, stats=None, prior=None):
        return super().pack(weight.reshape(2, -1))


class TakesNaN(Float16):
    def pack(self, weight, stats=None, prior=None):
        return Packed("quantize/float16", tuple(weight.shape), weight.dtype, {"values": weight.half()})


class LosesZeros(Float16):
    keeps_zeros = True

    def pack(self, weight, stats=None, prior=None):
        return super().pack(torch.where(weight == 0, 1e-3, weight).to(weight.dtype))


class Backwards(Uniform):
    @classmethod
    def choices(cls):
        return tuple(reversed(Uniform.choices()))


class Random(Float16):
    def pack(self, weight, stats=None, prior=None):
        return super().pack(weight + 0.01 * torch.rand_like(weight) if weight.abs().max() < 9 else weight)


@pytest.mark.parametrize(
    ("law", "broken"),
    [
        (weight_method.preserves, ChangesInput),
        (weight_method.plain, RefusesAll),
        (weight_method.preserves, Crashes),
        (weight_method.refuses_nan, TakesNaN),
        (weight_method.keeps_zeros, LosesZeros),
        (weight_method.finer_is_no_worse, Backwards),
        (weight_method.preserves, Random),
        (attached.saved_as_seen, RefusesAll),
        (attached.saved_as_seen, Random),
    ],
)
def test_a_broken_method_fails(law, broken):
    with pytest.raises((AssertionError, RuntimeError)):
        law(broken)


def test_an_unchecked_unpack_fails(monkeypatch):
    def careless(packed):
        steps = packed.parts["codes"].float() * packed.parts["scale"].reshape(-1)[0]
        return steps.to(packed.dtype)

    monkeypatch.setattr(Uniform, "unpack", staticmethod(careless))
    with pytest.raises(AssertionError):
        weight_method.refuses_damage(Uniform)


def test_training_that_sees_another_weight_fails(monkeypatch):
    from lilliput.train.node import Node

    monkeypatch.setattr(Node, "forward", lambda self, weight: weight)
    with pytest.raises(AssertionError, match=r"the file holds another|training saw"):
        attached.saved_as_seen(Uniform)


def test_a_wrong_declared_size_fails(monkeypatch):
    monkeypatch.setattr(attached, "size", lambda artifact: 1)
    with pytest.raises(AssertionError, match="declared 1 bytes"):
        attached.saved_as_seen(Float16)


@dataclasses.dataclass(frozen=True)
class Recomputed(Magnitude):
    def pack(self, weight, stats=None, prior=None):
        return super().pack(weight, stats, None)


@dataclasses.dataclass(frozen=True)
class OneTooMany(Magnitude):
    def mask(self, weight, stats=None, alive=None):
        return super().mask(weight, stats, alive) | (weight == weight.max())


@pytest.mark.parametrize(
    ("law", "broken"), [(criterion.mask_is_state, Recomputed), (criterion.sparsity_is_reached, OneTooMany)]
)
def test_a_broken_criterion_fails(law, broken):
    with pytest.raises(AssertionError):
        law(broken)
