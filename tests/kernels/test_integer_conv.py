"""Layers in whole numbers: shifts and adds against products, and both against the dense layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core import kernel
from lilliput.core.activations import Quantized
from lilliput.core.errors import MethodError
from lilliput.core.packed import pack_steps, unpack
from lilliput.graph.ir import InputRef, Node, TensorRef
from lilliput.kernels import integer_conv
from lilliput.kernels.integer_conv import prepare, restored, shift_conv, shifts
from lilliput.kernels.window import Window
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.activations import uniform as activations
from lilliput.quantize.incremental import Incremental
from lilliput.quantize.power_of_two import PowerOfTwo
from lilliput.quantize.shift import Shift
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans

LINEAR = Node("aten.linear.default", (InputRef(0), TensorRef("weight")))
METHODS = [PowerOfTwo(), Shift(terms=2), Shift(terms=3, bits=3), Incremental(), Incremental(bits=3)]


@pytest.mark.parametrize(("outputs", "channels", "groups"), [(1, 1, 1), (130, 7, 1), (6, 3, 2)])
def test_layout(outputs, channels, groups):
    codes = torch.randint(-9, 9, (2, outputs, channels, 2, 3), dtype=torch.int8)
    assert torch.equal(restored(prepare(codes, groups), outputs, channels).unflatten(3, (2, 3)), codes)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_shifts_are_the_weight(method):
    """The whole numbers times the step are the weight, bit for bit."""
    torch.manual_seed(0)
    packed = method.pack(torch.randn(20, 30) / 3)
    codes, exponent = shifts(packed)
    wide = codes.long()
    whole = (wide.sign() * torch.where(wide != 0, 2 ** (wide.abs() - 1), 0)).sum(0)
    factor = float(packed.parts["scale"]) if "scale" in packed.parts else 1.0
    assert torch.equal((whole.double() * 2.0**exponent * factor).float(), unpack(packed))


def shifted_and_added(x, code, outputs, window, channels):
    """Products of whole numbers, one shift and one addition at a time."""
    sizes = Window.of(window)
    total = torch.zeros(x.shape[0], outputs, *sizes.out(x.shape[2], x.shape[3]), dtype=torch.int64)
    padded = functional.pad(x.long(), (sizes.padding[1],) * 2 + (sizes.padding[0],) * 2)
    for term in restored(code, outputs, channels).tolist():
        for o, row in enumerate(term):
            for c, places in enumerate(row):
                for place, value in enumerate(places):
                    if not value:
                        continue
                    top, left = place // sizes.kernel[1], place % sizes.kernel[1]
                    seen = padded[:, c, top:, left:][:, :: sizes.stride[0], :: sizes.stride[1]]
                    seen = seen[:, : total.shape[2], : total.shape[3]] << (abs(value) - 1)
                    total[:, o] += seen if value > 0 else -seen
    return total


@pytest.mark.parametrize("variant", kernel.variants())
def test_shifts_and_adds(variant):
    """Bit for bit what shifting and adding gives, at the ends of 8 bits, too."""
    torch.manual_seed(1)
    codes = torch.randint(-15, 16, (2, 5, 3, 3, 2), dtype=torch.int8)
    codes[1] = torch.where(codes[0].abs() == 15, 0, codes[1].clamp(-12, 12))
    code, window = prepare(codes), Window((3, 2), stride=(2, 1), padding=(1, 1)).numbers
    for x in (torch.randint(-255, 256, (2, 3, 6, 7)), torch.full((1, 3, 4, 4), -255), torch.full((1, 3, 4, 4), 255)):
        with kernel.using(variant):
            found = shift_conv(x.short(), code, 5, window)
        assert torch.equal(found.long(), shifted_and_added(x, code, 5, window, 3))


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize("form", ["affine", "symmetric", "unsigned"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_layers(variant, form, method):
    """What the dense layer gives on the input's levels, to the rounding of floats."""
    torch.manual_seed(2)
    quantizer = activations.Uniform(bits=8, form=form, clip=2.0)
    inputs = Quantized(quantizer, quantizer.observe(None))
    for layer, shape in [
        (nn.Linear(33, 12), (2, 3, 33)),
        (nn.Conv2d(6, 10, 3, padding=1, stride=2), (2, 6, 9, 8)),
        (nn.Conv2d(6, 4, (1, 3), groups=2), (6, 9, 8)),
        (nn.Conv1d(3, 5, 4, padding=2), (2, 3, 20)),
    ]:
        packed = method.pack(layer.weight.detach())
        node, bias = LINEAR, layer.bias.detach()
        if not isinstance(layer, nn.Linear):
            ends = (layer.stride, layer.padding, layer.dilation, layer.groups)
            name = f"aten.conv{layer.weight.dim() - 2}d.default"
            node = Node(name, (InputRef(0), TensorRef("weight"), TensorRef("bias"), *ends))
        made = integer_conv.serves(packed, node, inputs)
        x = quantizer.forward(torch.randn(shape), inputs.numbers)
        with torch.no_grad():
            layer.weight.copy_(unpack(packed))
            expected = layer.double()(x.double())
        with kernel.using(variant):
            found = made(x, bias)
        assert found.shape == expected.shape
        assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize("pruned", [(), (Magnitude(sparsity=0.5),)])
def test_codebook_convolutions(variant, pruned):
    torch.manual_seed(3)
    quantizer = activations.Uniform(bits=8, clip=2.0)
    inputs = Quantized(quantizer, quantizer.observe(None))
    packed = pack_steps(torch.randn(20, 5, 3, 3), (*pruned, KMeans(bits=6), Uniform(bits=8, per="tensor")))
    node = Node("aten.conv2d.default", (InputRef(0), TensorRef("weight"), None, (1, 1), (1, 1)))
    made = integer_conv.serves(packed, node, inputs)
    assert made.kind == "codebook, whole numbers"
    x = quantizer.forward(torch.randn(2, 5, 7, 8), inputs.numbers)
    expected = functional.conv2d(x.double(), unpack(packed).double(), padding=1)
    with kernel.using(variant):
        assert float((made(x) - expected).norm()) <= 1e-6 * float(expected.norm())


def test_what_is_not_served():
    quantizer = activations.Uniform(bits=8, clip=2.0)
    inputs, weight = Quantized(quantizer, quantizer.observe(None)), torch.randn(8, 8)
    assert integer_conv.serves(Shift().pack(weight), LINEAR) is None, "floats go in"
    assert integer_conv.serves(PowerOfTwo(bits=6).pack(torch.logspace(-9, 0, 64).reshape(8, 8)), LINEAR, inputs) is None
    assert integer_conv.serves(Incremental(portion=0.5).pack(weight), LINEAR, inputs) is None
    assert integer_conv.serves(Uniform(bits=4).pack(weight), LINEAR, inputs) is None
    assert integer_conv.serves(KMeans(bits=4).pack(weight), LINEAR, inputs) is None
    wide = Quantized(activations.Uniform(bits=9, clip=2.0), {"scale": 1.0, "zero": 0})
    assert integer_conv.serves(Shift().pack(weight), LINEAR, wide) is None


def test_arguments_that_do_not_fit():
    code, x = prepare(torch.ones(1, 3, 2, 1, 1, dtype=torch.int8)), torch.ones(1, 2, 4, 4, dtype=torch.int16)
    window = Window((1, 1)).numbers
    for call in (
        lambda: shift_conv(x.int(), code, 3, window),
        lambda: shift_conv(x, code.int(), 3, window),
        lambda: shift_conv(x, code, 65, window),
        lambda: shift_conv(x[:, :1], code.repeat(1, 1, 1, 1, 2, 1, 1), 3, window),
        lambda: shift_conv(x, code, 3, Window((5, 5)).numbers),
        lambda: integer_conv.codebook_conv(x, code.byte(), torch.zeros(16, dtype=torch.int8), 3, window),
    ):
        with pytest.raises(MethodError):
            call()
