"""QONNX: weights and activations keep their levels, and qonnx's executor gives Lilliput's numbers."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.packed import unpack
from lilliput.export.qonnx import DOMAIN, ends, fewest, quant_of
from lilliput.quantize.binary import Binary
from lilliput.quantize.power_of_two import PowerOfTwo
from lilliput.quantize.ternary import Ternary
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans

WEIGHT = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()


def inputs():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def compressed(method, activations):
    text = f'[[rule]]\nsteps = [{{{method}}}]\nactivations = "{activations}"'
    return lilliput.compress(network(), lilliput.Recipe.loads(text), [inputs()])


def written(artifact, folder):
    artifact.export(folder / "net.onnx", engine="qonnx")
    return onnx.load(folder / "net.onnx")


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        (Binary(), 0),
        (Binary(per="tensor"), 0),
        (Ternary(), 2),
        (Uniform(bits=3), 3),
        (Uniform(bits=8), 8),
        (Uniform(bits=12), 12),
        (Uniform(bits=4, symmetric=False), 4),
        (Uniform(bits=4, symmetric=False, per="tensor"), 4),
    ],
)
def test_levels_of_a_weight_are_told_exactly(method, bits):
    weight = WEIGHT.clone()
    if not isinstance(method, Binary):
        weight[2] = 0
    packed = method.pack(weight)
    quant = quant_of(packed, unpack(packed))
    assert quant.bits == bits
    assert np.array_equal(quant(unpack(packed).numpy()), unpack(packed).numpy())


def test_powers_of_two_are_whole_numbers_and_shared_values_stay_floats():
    packed = PowerOfTwo().pack(WEIGHT)
    assert quant_of(packed, unpack(packed)).bits > 2
    packed = KMeans(bits=4).pack(WEIGHT)
    assert quant_of(packed, unpack(packed)) is None
    assert quant_of(WEIGHT, WEIGHT) is None


@pytest.mark.parametrize("low", range(-9, 1))
@pytest.mark.parametrize("high", range(1, 9))
def test_the_fewest_bits(low, high):
    bits, signed, narrow = fewest(low, high)
    assert ends(bits, signed, narrow)[0] <= low <= high <= ends(bits, signed, narrow)[1]
    if bits > 1 + signed:
        smaller = ends(bits - 1, signed, False)
        assert not smaller[0] <= low <= high <= smaller[1]


@pytest.mark.parametrize(
    ("method", "activations", "kinds"),
    [
        ('method = "quantize/uniform", bits = 4', "uniform:4", {"Quant"}),
        ('method = "quantize/uniform", bits = 8', "uniform:8", {"Quant"}),
        ('method = "quantize/ternary"', "uniform:3", {"Quant"}),
        ('method = "quantize/binary"', "binary", {"BipolarQuant"}),
    ],
    ids=["4 bits", "8 bits", "ternary", "binary"],
)
def test_the_executor_gives_the_dense_numbers(method, activations, kinds, tmp_path):
    pytest.importorskip("qonnx")
    artifact = compressed(method, activations)
    model = written(artifact, tmp_path)
    assert {node.op_type for node in model.graph.node if node.domain == DOMAIN} == kinds
    # Three weights, and what goes into each.
    assert sum(node.domain == DOMAIN for node in model.graph.node) == 6
    assert all(value.type.tensor_type.shape.dim[0].dim_value == 1 for value in model.graph.input)
    net, dense = (lilliput.load(artifact, engine=name) for name in ("qonnx", "dense"))
    with torch.no_grad():
        torch.testing.assert_close(net(inputs()), dense(inputs()), rtol=1e-4, atol=1e-4)


def test_a_weight_says_its_bits(tmp_path):
    model = written(compressed('method = "quantize/ternary"', "uniform:3"), tmp_path)
    held = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "Quant"]
    bits = sorted(float(held[node.input[3]]) for node in nodes)
    assert bits == [2, 2, 2, 3, 3, 3]
    weights = [node for node in nodes if node.input[0] in held]
    assert all(len(np.unique(held[node.input[0]][0])) <= 3 for node in weights)
    assert all({a.name: a.i for a in node.attribute}["narrow"] == 1 for node in weights)
