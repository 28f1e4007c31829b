"""Linear layers of shared values against the dense ones."""

import pytest
import torch
from torch.nn import functional

from lilliput.core import kernel
from lilliput.core.activations import Quantized
from lilliput.core.errors import MethodError
from lilliput.core.packed import pack_steps, unpack
from lilliput.graph.ir import InputRef, Node, TensorRef
from lilliput.kernels import codebook_linear
from lilliput.kernels.codebook_linear import SIZES, prepare, restored
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.activations import uniform as activations
from lilliput.quantize.float16 import Float16
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans

LINEAR = Node("aten.linear.default", (InputRef(0), TensorRef("weight")))


@pytest.mark.parametrize("values", SIZES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (4, 128), (7, 333)])
def test_layout(values, outputs, inputs):
    codes = torch.randint(0, values, (outputs, inputs))
    assert torch.equal(restored(prepare(codes, values), values, outputs, inputs), codes)


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ((KMeans(bits=4),), "codebook, 4 bits, float32"),
        ((KMeans(bits=8),), "codebook, 8 bits, float32"),
        ((KMeans(bits=7),), "codebook, 8 bits, float32"),
        ((Magnitude(sparsity=0.5), KMeans(bits=5)), "codebook, 8 bits, float32"),
        ((Magnitude(sparsity=0.5), KMeans(k=15)), "codebook, 4 bits, float32"),
        ((KMeans(bits=4), Float16("bfloat16")), "codebook, 4 bits, bfloat16"),
        ((KMeans(bits=6), Float16("float16")), "codebook, 8 bits, float32"),
    ],
)
def test_float_layers(variant, steps, kind):
    torch.manual_seed(0)
    packed = pack_steps(torch.randn(45, 333), steps)
    layer = codebook_linear.serves(packed, LINEAR)
    assert layer.kind == kind
    bias = torch.randn(45)
    with kernel.using(variant):
        for rows in (1, 3, 20):
            x = torch.randn(2, rows, 333)
            expected = functional.linear(x.double(), unpack(packed).double(), bias.double())
            found = layer(x, bias)
            assert float((found - expected).norm()) <= layer.tolerance * float(expected.norm())
            if "bfloat16" in kind and rows == 1:
                expected = functional.linear(x.bfloat16().double(), unpack(packed).double(), bias.double())
                assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize("form", ["affine", "symmetric", "unsigned"])
@pytest.mark.parametrize("zeros", [(), (Magnitude(sparsity=0.5),)])
def test_whole_numbers(variant, form, zeros):
    """Exact: what the dense layer gives on the quantizer's levels, to the rounding of its own floats."""
    torch.manual_seed(1)
    packed = pack_steps(torch.randn(9, 140), (*zeros, KMeans(k=15), Uniform(bits=8, per="tensor")))
    quantizer = activations.Uniform(bits=8, form=form, clip=2.0)
    numbers = quantizer.observe(None)
    layer = codebook_linear.serves(packed, LINEAR, Quantized(quantizer, numbers))
    assert layer.kind == "codebook, 4 bits, int8"
    x, bias = quantizer.forward(torch.randn(3, 140), numbers), torch.randn(9)
    expected = functional.linear(x.double(), unpack(packed).double(), bias.double())
    with kernel.using(variant):
        assert float((layer(x, bias) - expected).norm()) <= 1e-6 * float(expected.norm())


@pytest.mark.parametrize("variant", kernel.variants())
@pytest.mark.parametrize("values", SIZES)
def test_ends_of_int8(variant, values):
    """-128 times -128, everywhere: the largest sums."""
    x = torch.full((1, 1000), -128, dtype=torch.int8)
    book = torch.full((values,), -128, dtype=torch.int8)
    code = prepare(torch.randint(0, values, (4, 1000)), values)
    with kernel.using(variant):
        assert codebook_linear.codebook_int8(x, code, book, 4).tolist() == [[16384 * 1000] * 4]


def test_what_is_not_served():
    weight = torch.randn(6, 70)
    assert codebook_linear.serves(Uniform(bits=4).pack(weight), LINEAR) is None
    assert codebook_linear.serves(KMeans(k=300).pack(weight), LINEAR) is None
    assert codebook_linear.serves(KMeans(bits=4).pack(weight.double()), LINEAR) is None
    damaged = KMeans(bits=2).pack(weight)
    damaged.parts["codes"][0, 0] = 77
    with pytest.raises(MethodError, match="outside"):
        codebook_linear.serves(damaged, LINEAR)


def test_arguments_that_do_not_fit():
    x, code, book = torch.ones(1, 70), prepare(torch.zeros(5, 70), 16), torch.ones(16)
    calls = [
        lambda: codebook_linear.codebook_linear(x.double(), code, book, None, 5),
        lambda: codebook_linear.codebook_linear(x, code, book[:3], None, 5),
        lambda: codebook_linear.codebook_linear(x, code, book.double(), None, 5),
        lambda: codebook_linear.codebook_linear(x, code, book, None, 9),
        lambda: codebook_linear.codebook_linear(x, code, torch.ones(64), None, 5),
        lambda: codebook_linear.codebook_linear(x, code, book, torch.ones(4), 5),
        lambda: codebook_linear.codebook_int8(x, code, book, 5),
        lambda: codebook_linear.codebook_int8(x.to(torch.int8), code, book, 5),
        lambda: codebook_linear.codebook_int8(torch.ones(1, 1 << 17, dtype=torch.int8), code, book.to(torch.int8), 5),
    ]
    for call in calls:
        with pytest.raises(MethodError):
            call()
