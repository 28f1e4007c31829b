"""What the papers say of their networks' insides: shuffles, C.ReLU, shortcuts, heads."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.method import find
from lilliput.nets.pvanet import CReLU, PVANet
from lilliput.nets.resnet import ResNet, Slices
from lilliput.nets.shufflenet import Shuffle, ShuffleNet, Unit
from lilliput.nets.squeezenet import SqueezeNet
from lilliput.nets.vgg import VGG


def test_shuffle_undone_by_the_shuffle_of_the_other_side():
    x = torch.rand(2, 12, 3, 3)
    assert torch.equal(Shuffle(4)(Shuffle(3)(x)), x)
    assert torch.equal(Shuffle(3)(x), nn.functional.channel_shuffle(x, 3))
    for groups in (1, 12):
        assert torch.equal(Shuffle(groups)(x), x)
    # out[k g + i] = in[i c / g + k]
    assert all(torch.equal(Shuffle(3)(x)[:, k * 3 + i], x[:, i * 4 + k]) for k in range(4) for i in range(3))


@pytest.mark.parametrize("shuffled", [False, True])
def test_groups_see_each_other_only_by_the_shuffle(shuffled):
    """Without it, an output group depends on its own input group alone; with it, on all."""
    torch.manual_seed(0)
    unit = Unit(144, 144, 3, 3).eval()
    if not shuffled:
        unit.shuffle = nn.Identity()
    x = torch.randn(1, 144, 5, 5, requires_grad=True)
    branch = unit.expand(unit.depthwise(unit.shuffle(unit.reduce(x))))
    for group in range(3):
        (grad,) = torch.autograd.grad(branch[:, 48 * group : 48 * group + 48].sum(), x, retain_graph=True)
        reached = grad.abs().sum((0, 2, 3)).reshape(3, 48).sum(1) > 0
        assert reached.tolist() == [shuffled or other == group for other in range(3)]


def test_a_growing_unit_puts_the_average_first():
    unit = Unit(12, 36, 3, 1).eval()
    x = torch.rand(1, 12, 6, 6)
    y = unit(x)
    assert y.shape == (1, 36, 3, 3)
    assert torch.equal(y[:, :12], nn.functional.avg_pool2d(x, 3, 2, 1))
    assert bool((y[:, 12:] >= 0).all())


def test_every_group_and_width_of_shufflenet_runs():
    for groups in (1, 2, 3, 4, 8):
        for width in (0.25, 0.5, 1.5, 2.0):
            with torch.device("meta"):
                net = ShuffleNet(groups, width, 1)
                assert net.build()(torch.empty(2, 3, 224, 224)).shape == (2, 1000)


def test_crelu_is_both_halves():
    """With gamma = 1 and beta = 0 the halves are relu(x), relu(-x), and their difference the normalised x."""
    layer = CReLU(3, 5, 3).eval()
    layer.norm.running_mean.normal_()
    x = torch.randn(2, 3, 6, 6)
    normed = layer.norm(layer.conv(x))
    y = layer(x)
    assert y.shape == (2, 10, 6, 6)
    assert torch.equal(y, torch.cat([normed.relu(), (-normed).relu()], 1))
    assert torch.allclose(y[:, :5] - y[:, 5:], normed)


def test_pvanet_s_heads():
    # At 28 x 28 the map is an eighth of it, rounded up.
    assert PVANet("none", 0.0625, 1, channels=1, size=28).build()(torch.rand(2, 1, 28, 28)).shape == (2, 24, 4, 4)
    assert PVANet("none", 0.0625, 1).build()(torch.rand(1, 3, 96, 64)).shape == (1, 24, 3, 2)
    small = PVANet("caffe", 0.0625, 1, num_classes=7, channels=1, size=28)
    assert small.build().eval()(torch.rand(1, 1, 28, 28)).shape == (1, 7)
    features, scores, boxes = PVANet("detection", 0.0625, 2).build()(torch.rand(1, 3, 64, 96))
    assert (features.shape, scores.shape, boxes.shape) == ((1, 32, 4, 6), (1, 50, 4, 6), (1, 100, 4, 6))
    with pytest.raises(MethodError, match="multiple of 32"):
        PVANet(size=100)
    with pytest.raises(MethodError, match="multiple of 32"):
        PVANet("detection", size=28)


def test_pvanet_9_1_norms_come_first_and_close_the_trunk():
    """Every block takes the raw sum to its shortcut; after the last one there is BatchNorm and ReLU."""
    torch.manual_seed(0)
    model = PVANet("none", 0.0625, 2, channels=1, size=28, version="9.1").build().eval()
    x = torch.randn(2, 1, 28, 28)
    sums = {}
    for name, block in model.named_children():
        block.register_forward_hook(lambda module, args, y, name=name: sums.update({name: y}))
    y = model(x)
    assert bool((y >= 0).all())
    assert bool((sums["conv5_2"] < 0).any())
    block = model.conv3_2
    with torch.no_grad():
        block.body[0].weight.zero_()
        block.body[0].bias.fill_(-1.0)
        silent = block.body(sums["conv3_1"])
        # Nothing passes the first ReLU, so that the body gives the same everywhere but at the border's padding.
        assert torch.allclose(silent[:, :, 2:-2, 2:-2], silent[:, :, 2:3, 2:3].expand(-1, -1, 10, 10))
        assert torch.allclose(block(sums["conv3_1"]), silent + sums["conv3_1"])
    assert PVANet("detection", 0.0625, 2, version="9.1").build()(torch.rand(1, 3, 64, 64))[0].shape == (1, 32, 4, 4)


def test_hypernet_s_upsampling_starts_bilinear():
    model = PVANet("detection", 0.0625, 1).build()
    constant = model.up(torch.ones(1, 24, 4, 4))
    assert torch.allclose(constant[:, :, 1:-1, 1:-1], torch.ones(1))


def test_squeezenet_s_maps():
    """109 x 109 after the first convolution of 224, then 54, 27, 13."""
    sizes = []
    with torch.device("meta"):
        model = SqueezeNet().build()
        for name in ("conv1", "pool1", "pool4", "pool8"):
            getattr(model, name).register_forward_hook(lambda module, args, y: sizes.append(y.shape[-1]))
        model(torch.empty(1, 3, 224, 224))
    assert sizes == [109, 54, 27, 13]


def test_resnet_s_shortcut_without_parameters():
    x = torch.rand(1, 4, 6, 6)
    y = Slices(4, 6, 2)(x)
    assert torch.equal(y[:, :4], x[:, :, ::2, ::2])
    assert not y[:, 4:].any()


def test_resnet_has_torchvision_s_names():
    names = set(ResNet(50).build().state_dict())
    expected = {"conv1.weight", "bn1.running_mean", "layer1.0.downsample.1.weight", "layer4.2.conv3.weight", "fc.bias"}
    assert expected <= names
    assert "layer1.1.downsample.0.weight" not in names


def test_vgg_pools_no_single_pixel():
    assert sum(isinstance(m, nn.MaxPool2d) for m in VGG(11, "cifar", 0.0625, size=28).build()) == 4
    assert sum(isinstance(m, nn.MaxPool2d) for m in VGG(11, "cifar", 0.0625, size=32).build()) == 5


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet", {"depth": 19}, "no depth 19; there is 18, 34"),
        ("resnet", {"depth": 19, "form": "cifar"}, r"must be 6 n \+ 2"),
        ("vgg", {"form": "tiny"}, "no form 'tiny'"),
        ("squeezenet", {"version": "2.0"}, "no version '2.0'; there is 1.0, 1.1"),
        ("shufflenet", {"groups": 5}, "no groups 5"),
        ("mobilenet", {"width": 0.0}, "width = 0.0 is outside"),
        ("pvanet", {"version": "9.2"}, "no version '9.2'; there is 9.0, 9.1"),
        ("pvanet", {"head": "big"}, "no head 'big'"),
        ("lbcnn", {"kernel": 4}, "kernel"),
        ("lbcnn", {"density": 1.5}, "density = 1.5"),
        ("lenet", {"form": "4"}, "no form '4'; there is 300-100, 5"),
        ("alexnet", {"size": 8}, "size = 8 is outside 16"),
        ("lenet", {"dropout": 1.0}, "dropout = 1.0"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(MethodError, match=f"nets/{name}: .*{message}|nets/{name}: {message}"):
        find("nets", name)(**settings)
