"""Li et al. 2017: the networks that are left have as many weights and multiplications as in the paper's tables."""

import math

import pytest
import torch

import lilliput
from lilliput.graph.macs import macs
from lilliput.nets.resnet import ResNet
from lilliput.nets.vgg import VGG

PICTURE = torch.zeros(1, 3, 32, 32)


def weights_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def removed(size, part):
    """A share of which just ceil(part * size) channels go."""
    return (math.ceil(part * size) + 1e-6) / size


def test_vgg_16_a():
    """The first convolution and the last six lose half of their filters: 5.4 M weights, -34.2 % MACs."""
    model = VGG(form="cifar", num_classes=10, size=32).build().eval()
    names = [name for name, value in model.named_parameters() if value.ndim == 4]
    share = {name: removed(model.get_parameter(name).shape[0], 0.5) for name in (names[0], *names[7:])}
    smaller, _ = lilliput.cut(model, lambda group: share.get(group.name, 0.0), PICTURE)
    assert weights_of(smaller) == 5_396_010
    assert macs(smaller, PICTURE) == 206_279_680


@pytest.mark.parametrize(
    ("parts", "skipped", "fewer_macs", "fewer_weights"),
    [((0.1, 0.1, 0.1), (16, 20, 38, 54), 10.4, 9.3), ((0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54), 27.6, 13.8)],
    ids=["A", "B"],
)
def test_resnet_56(parts, skipped, fewer_macs, fewer_weights):
    """The first convolution of each block, but for some, by the parts of the three stages; rounded up."""
    whole = ResNet(56, "cifar", num_classes=10, size=32).build().eval()
    first = [name for name, value in whole.named_parameters() if value.ndim == 4 and name.endswith("conv1.weight")]
    first = [name for name in first if name.startswith("layer")]
    assert len(first) == 27
    share = {
        name: removed(whole.get_parameter(name).shape[0], parts[place // 9])
        for place, name in enumerate(first)
        if 2 * place + 2 not in skipped
    }
    smaller, _ = lilliput.cut(whole, lambda group: share.get(group.name, 0.0), PICTURE)
    assert round(100 * (1 - macs(smaller, PICTURE) / macs(whole, PICTURE)), 1) == fewer_macs
    assert round(100 * (1 - weights_of(smaller) / weights_of(whole)), 1) == fewer_weights
