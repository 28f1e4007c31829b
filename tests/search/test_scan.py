"""The sensitivity scan: the layer that matters is told from the one that doesn't, by data and by a metric."""

import copy

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import DataError, MethodError
from lilliput.prune.filter_norm import FilterNorm
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.float16 import Float16
from lilliput.testing.spread import gaussian


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        net[2].weight.copy_(torch.eye(16))  # nothing is lost up to 15 / 16
    return net.eval()


DATA = [gaussian(32, 8, seed=i) * 10 for i in range(3)]


def test_by_the_outputs(model):
    before = copy.deepcopy(model.state_dict())
    found = lilliput.sensitivity(model, DATA, sparsities=(0.9, 0.5))
    assert found.unit == "divergence"
    assert found.sparsities == (0.5, 0.9)
    curves = {curve.name: curve.values for curve in found.curves}
    assert list(curves) == ["0.weight", "2.weight", "4.weight"]
    assert curves["2.weight"] == (0.0, 0.0)
    for name in ("0.weight", "4.weight"):
        assert 0 < curves[name][0] < curves[name][1]
    assert found.within(0.0) == {"0.weight": 0.0, "2.weight": 0.9, "4.weight": 0.0}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_by_the_users_metric(model):
    def closeness(net):
        return -float((net(DATA[0]) - model(DATA[0])).square().mean())

    found = lilliput.sensitivity(model, evaluate=closeness, sparsities=(0.5, 0.9))
    assert found.unit == "metric"
    assert found.dense == 0
    for curve in found.curves:
        pruned = copy.deepcopy(model)
        for sparsity, value in zip(found.sparsities, curve.values):
            packed = Magnitude(sparsity=sparsity).pack(model.get_parameter(curve.name).detach())
            pruned.get_parameter(curve.name).data = lilliput.unpack(packed)
            assert value == pytest.approx(closeness(pruned), rel=1e-5, abs=1e-12)


def test_other_criteria_and_patterns(model):
    found = lilliput.sensitivity(model, DATA, method=FilterNorm(), sparsities=(0.5,))
    assert found.curves[1].values[0] > 0  # half of the identity's rows
    refused = lilliput.sensitivity(model, DATA, method=Magnitude(pattern="head:3"), sparsities=(0.5,))
    assert [curve.values for curve in refused.curves] == [(None,)] * 3


def test_what_makes_no_sense_is_refused(model):
    with pytest.raises(DataError, match="needs data"):
        lilliput.sensitivity(model)
    with pytest.raises(MethodError, match="no sparsity"):
        lilliput.sensitivity(model, DATA, method=Float16())
    with pytest.raises(MethodError):
        lilliput.sensitivity(model, DATA, sparsities=(1.5,))
