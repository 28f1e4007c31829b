"""Incremental quantization: golden values, nearest words, and what is quantized stays while the rest is trained."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.quantize.incremental import FREE, Incremental
from lilliput.quantize.portions import Portions
from lilliput.testing.spread import gaussian
from lilliput.train.attach import advance, attach

W0 = torch.tensor([0.9, -0.74, 0.4, -0.3, 0.1, -0.02, 0.0, 0.62, 0.012, -0.003])


def test_golden_values_of_the_standard_fixture():
    five = [1, -0.5, 0.5, -0.25, 0.125, -0.015625, 0, 0.5, 0.015625, 0]
    assert unpack(Incremental(bits=5).pack(W0)).tolist() == five
    assert unpack(Incremental(bits=3).pack(W0)).tolist() == [1, -0.5, 0.5, -0.5, 0, 0, 0, 0.5, 0, 0]


@pytest.mark.parametrize("bits", [2, 3, 5])
def test_nearest_of_all_words(bits):
    w = torch.linspace(-0.99, 0.99, 3999, dtype=torch.float64)
    top = 0  # 4 * 0.99 / 3 = 1.32
    words = [0.0] + [s * 2.0**e for e in range(top, top - 2 ** (bits - 2), -1) for s in (1, -1)]
    assert len(words) == 2 ** (bits - 1) + 1
    value = unpack(Incremental(bits=bits).pack(w))
    best = (w[:, None] - torch.tensor(words, dtype=torch.float64)).abs().min(1).values
    assert torch.allclose((value - w).abs(), best, atol=1e-12)
    assert set(value.unique().tolist()) <= set(words)


@pytest.mark.parametrize(("largest", "top"), [(0.74, -1), (0.75, 0), (0.76, 0), (1.499, 0), (1.5, 1)])
def test_the_largest_exponent(largest, top):
    assert Incremental().pack(torch.tensor([largest, 0.1])).settings["top"] == top


def test_the_largest_come_first():
    w = gaussian(200)
    packed = Incremental(portion=0.3).pack(w)
    done = packed.parts["codes"] != FREE
    assert int(done.sum()) == 60
    assert float(w[done].abs().min()) >= float(w[~done].abs().max())
    assert torch.equal(unpack(packed)[~done], w[~done])
    scattered = Incremental(portion=0.3, partition="random").pack(w).parts["codes"] != FREE
    assert int(scattered.sum()) == 60
    assert float(w[scattered].abs().min()) < float(w[~scattered].abs().max())


def trained(partition, seed=0):
    """A layer trained on a linear task in four steps; returns its loss and what was seen after each step."""
    torch.manual_seed(seed)
    inputs = torch.randn(256, 40)
    target = inputs @ (torch.randn(40, 12) * 0.3)
    layer = nn.Linear(40, 12, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.lstsq(inputs, target).solution.T)
    steps = (Incremental(bits=4, partition=partition, seed=seed),)
    attach(layer, Recipe((Rule(steps=steps, schedule=Portions(until=0.9)),)))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3, momentum=0.9, weight_decay=5e-4)
    seen = []
    for step in range(200):
        if advance(layer, step / 199) or not step:
            seen.append(layer.weight.detach().clone())
        loss = functional.mse_loss(layer(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss), seen, layer


def test_what_is_quantized_stays_bit_for_bit():
    _, seen, layer = trained("magnitude")
    final = layer.weight.detach()
    node = layer.parametrizations.weight[0]
    assert len(seen) == 4
    for weight, portion in zip(seen, (0.5, 0.75, 0.875, 1.0)):
        exponents = torch.log2(weight.abs())
        quantized = (weight == 0) | (exponents == exponents.round())
        assert int(quantized.sum()) == round(portion * 480)
        assert torch.equal(final[quantized], weight[quantized])
    assert not bool((node.packed(final).parts["codes"] == FREE).any())


def test_training_makes_up_and_magnitude_first_is_better():
    first = sum(trained("magnitude", seed)[0] for seed in range(3))
    at_random = sum(trained("random", seed)[0] for seed in range(3))
    at_once = 0.0
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = torch.randn(256, 40)
        weight = torch.randn(40, 12) * 0.3
        at_once += float(functional.mse_loss(inputs @ unpack(Incremental(bits=4).pack(weight.T)).T, inputs @ weight))
    assert first < at_random
    assert first < at_once


def test_settings():
    with pytest.raises(MethodError, match="portions must rise"):
        Portions(portions=(0.5, 0.4, 1.0))
    with pytest.raises(MethodError, match="portion = "):
        Incremental(portion=1.5)
