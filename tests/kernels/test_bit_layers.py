"""Layers on bits against convolutions of the numbers that the bits stand for."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core import kernel
from lilliput.core.errors import MethodError
from lilliput.kernels import binary
from lilliput.kernels.bit_layers import (
    Codes,
    Steps,
    pack_planes,
    pack_sign_maps,
    plane_layer,
    sign_planes,
    ternary_layer,
    ternary_planes,
    xnor_layer,
)

STEPS = [
    Steps((1, 1), (0, 0)),
    Steps((1, 1), (1, 1)),
    Steps((2, 2), (1, 1)),
    Steps((2, 1), (2, 0), (1, 2)),
    Steps((1, 2), (0, 3), (2, 1)),
]


@pytest.fixture(params=kernel.variants())
def variant(request):
    with kernel.using(request.param):
        yield request.param


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def signs_of(x):
    return torch.where(x >= 0, 1.0, -1.0).double()


def expected(x, weight, steps, border=0.0):
    (ph, pw), x = steps.padding, x.double()
    x = functional.pad(x, (pw, pw, ph, ph), value=border)
    return functional.conv2d(x, weight.double(), None, steps.stride, 0, steps.dilation)


@pytest.mark.parametrize("border", [-1, 0, 1])
@pytest.mark.parametrize("steps", STEPS, ids=str)
@pytest.mark.parametrize(("channels", "kernel_size"), [(1, (1, 1)), (65, (3, 3)), (128, (3, 2)), (70, (5, 1))])
def test_xnor(variant, channels, kernel_size, steps, border):
    x, w = drawn(2, channels, 9, 8), drawn(67, channels, *kernel_size, seed=1)
    found = xnor_layer(w, steps, border).total(sign_planes(x))
    assert torch.equal(found.double(), expected(signs_of(x), signs_of(w), steps, border))


def test_xnor_is_what_the_integer_reference_says(variant):
    x, w = signs_of(drawn(2, 5, 7, 6)).float(), signs_of(drawn(4, 5, 3, 3, seed=1)).float()
    assert torch.equal(xnor_layer(w, Steps((2, 2), (1, 1))).total(sign_planes(x)).long(), binary.convolve(x, w, 2, 1))


@pytest.mark.parametrize("steps", STEPS[:4], ids=str)
@pytest.mark.parametrize(("m", "k"), [(1, 1), (1, 2), (2, 2), (3, 4), (1, 8)])
def test_bit_planes_of_dorefa_weights(variant, m, k, steps):
    """Weights 2 code - (2^m - 1); inputs with and without an offset, which zeros around the map don't have."""
    generator = torch.Generator().manual_seed(m * 10 + k)
    x = torch.randint(0, 2**k, (2, 70, 7, 8), generator=generator).byte()
    w = torch.randint(0, 2**m, (66, 70, 3, 3), generator=generator)
    own = Codes(m, 2, 1 - 2**m)
    for of_x in (Codes(k), Codes(k, 2, 1 - 2**k)):
        found = plane_layer(w, own, of_x, steps).total(pack_planes(x, k))
        values = x.double() * of_x.step + of_x.offset
        assert torch.equal(found.double(), expected(values, w * own.step + own.offset, steps))


def test_bit_planes_are_those_of_the_reference(variant):
    x, w = torch.randint(0, 256, (6, 70), dtype=torch.uint8), drawn(4, 70, seed=2)
    layer = plane_layer((w > 0).long(), Codes(1, 2, -1), Codes(8))
    assert torch.equal(layer.total(pack_planes(x[:, :, None, None], 8))[..., 0, 0].long(), binary.plane_products(x, w))


@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_ternary_by_ternary(variant, steps):
    x, w = drawn(2, 70, 9, 8).round().clamp(-1, 1), drawn(66, 70, 3, 3, seed=3).round().clamp(-1, 1)
    assert torch.equal(ternary_layer(w, steps).total(ternary_planes(x)).double(), expected(x, w, steps))


def test_layers_pass_bits_to_one_another(variant):
    """Convolution, BatchNorm, sign, convolution: bit for bit what the float layers give."""
    torch.manual_seed(4)
    x, first, second = drawn(2, 70, 6, 6), drawn(66, 70, 3, 3, seed=5), drawn(20, 66, 3, 3, seed=6)
    norm = nn.BatchNorm2d(66).eval()
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
        norm.running_mean.normal_().mul_(10)
        norm.running_var.uniform_(100, 900)
    steps = Steps(padding=(1, 1))
    folded = binary.fold(lambda y: norm(y[:, :, None, None])[:, :, 0, 0], 66, 630)
    bits = xnor_layer(first, steps).signs(sign_planes(x), folded)
    between = expected(signs_of(x), signs_of(first), steps)
    with torch.no_grad():
        binarized = norm(between.float()) >= 0
    assert torch.equal(bits[0], pack_sign_maps(torch.where(binarized, 1.0, -1.0))[0])
    found = xnor_layer(second, steps).total(bits)
    assert torch.equal(found.double(), expected(torch.where(binarized, 1.0, -1.0), signs_of(second), steps))


@pytest.mark.parametrize("steps", STEPS[:3], ids=str)
def test_alpha_and_k_of_xnor_net(variant, steps):
    """K is the mean of |x| over each window and all channels, zeros outside counted."""
    x, w, bias = drawn(2, 70, 9, 8), drawn(10, 70, 3, 3, seed=7), drawn(10, seed=8)
    bits, mean = pack_sign_maps(x, True)
    alpha = w.abs().mean((1, 2, 3))
    found = xnor_layer(w, steps).real(bits[None], alpha, bias, mean)
    window = torch.full((1, 70, 3, 3), 1 / (70 * 9)).double()
    k = expected(x.abs(), window, steps)
    reference = expected(signs_of(x), signs_of(w), steps) * alpha[:, None, None] * k + bias[:, None, None]
    torch.testing.assert_close(found.double(), reference, rtol=1e-5, atol=1e-4)


def test_floats_are_packed_on_the_way(variant):
    x, layer = drawn(2, 70, 6, 5), xnor_layer(drawn(9, 70, 3, 3, seed=9), Steps(padding=(1, 1)))
    assert torch.equal(layer.total(x), layer.total(sign_planes(x)))
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.real(last, torch.ones(9)), layer.real(sign_planes(x), torch.ones(9)))


def test_no_places_at_all(variant):
    assert xnor_layer(drawn(3, 5, 1, 1)).total(sign_planes(drawn(0, 5, 4, 4))).shape == (0, 3, 4, 4)


def test_bad_input():
    layer, x = xnor_layer(drawn(3, 70, 3, 3)), sign_planes(drawn(1, 70, 4, 4))
    with pytest.raises(MethodError, match="border of a binary convolution"):
        xnor_layer(drawn(3, 70, 3, 3), border=2)
    with pytest.raises(MethodError, match="bits serve weights"):
        xnor_layer(drawn(3, 70, 3))
    with pytest.raises(MethodError, match="codes of 2 and 2 bits"):
        plane_layer(torch.tensor([[4]]), Codes(2), Codes(2))
    for change in range(6):
        arguments = [x, list(layer.layer), list(layer.numbers), list(layer.geometry)]
        if change == 0:
            arguments[0] = x[..., :1].contiguous()
        elif change == 1:
            arguments[1][1] = arguments[1][1][:-1]
        elif change == 2:
            arguments[2] = [7, 0]
        elif change == 3:
            arguments[3][2] = 0
        elif change == 4:
            arguments[0] = sign_planes(drawn(1, 70, 2, 2))
        else:
            arguments[1][3] = torch.ones(3, dtype=torch.int32)
        with pytest.raises(MethodError, match="bit_conv:"):
            torch.ops.lilliput.bit_conv_total(*arguments)


def test_export_and_compile_take_a_layer_whole():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = xnor_layer(drawn(8, 70, 3, 3), Steps(padding=(1, 1)))
            self.register_buffer("scale", torch.ones(8))

        def forward(self, x):
            return self.own.real(x, self.scale).relu()

    x, net = drawn(1, 70, 5, 5), Net()
    exported = torch.export.export(net, (x,))
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert any("bit_conv" in name for name in names)
    assert torch.equal(exported.module()(x), net(x))


def test_the_dispatcher_is_left_out_only_where_nobody_looks_on():
    x, layer = drawn(1, 70, 5, 5), xnor_layer(drawn(8, 70, 3, 3), Steps(padding=(1, 1)))
    alone = layer.xnor_net(x, torch.ones(8))
    with torch.profiler.profile() as profile:
        watched = layer.xnor_net(x, torch.ones(8))
    assert any("xnor_conv" in event.name for event in profile.events())
    assert torch.equal(alone, watched)
    assert torch.equal(alone, layer.xnor_net(x.clone().requires_grad_(), torch.ones(8)))
    assert layer.xnor_net(x.to("meta"), torch.ones(8)).is_meta
