"""Shift and add: in integers, bit for bit what the values of the file give."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import MethodError
from lilliput.core.packed import unpack
from lilliput.kernels.shift_add import shift_layer
from lilliput.quantize.incremental import Incremental
from lilliput.quantize.power_of_two import PowerOfTwo
from lilliput.quantize.shift import Shift
from lilliput.quantize.uniform import Uniform

METHODS = [
    Shift(terms=1),
    Shift(terms=2),
    Shift(terms=3, bits=3),
    PowerOfTwo(),
    PowerOfTwo(bits=3, top=1),
    Incremental(),
]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes(*shape):
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(1), dtype=torch.int8)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_linear_layer_is_the_product_of_the_values_bit_for_bit(method):
    packed, x = method.pack(drawn(6, 40).double()), codes(5, 40)
    layer = shift_layer(packed)
    scale = float(packed.parts["scale"]) if "scale" in packed.parts else 1.0
    values = unpack(packed) / scale
    assert torch.equal(layer.total(x).double() * 2.0**-layer.deepest, x.double() @ values.T)
    assert layer(x).allclose(x.double() @ unpack(packed).T, rtol=1e-14, atol=0)
    assert layer.table[0] == 0


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 1, 1, 1), (2, 0, 1, 2), (1, 2, 2, 4)])
def test_a_convolution_is_the_product_of_the_values_bit_for_bit(stride, padding, dilation, groups):
    packed = Shift(terms=2).pack(drawn(8, 4 // groups, 3, 3, seed=2).double())
    geometry = ((stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
    layer, x = shift_layer(packed, geometry), codes(2, 4, 9, 8)
    values = unpack(packed) / packed.parts["scale"].double()
    exact = nn.functional.conv2d(x.double(), values, None, stride, padding, dilation, groups)
    assert torch.equal(layer.total(x).double() * 2.0**-layer.deepest, exact)


def test_the_table_is_as_long_as_the_paper_s():
    """floor(M / 2) + N - 1 distances over all codebooks, M = 2^B - 1; signs and zero make M + 2 (N - 1) entries."""
    weight = torch.linspace(-1, 1, 4001)[None]
    for terms, bits in ((1, 4), (2, 4), (3, 4), (2, 3)):
        distances = len(shift_layer(Shift(terms=terms, bits=bits).pack(weight)).table)
        words = 2**bits - 1
        assert distances <= words // 2 + terms - 1
        assert 2 * distances + 1 <= words + 2 * (terms - 1)
        assert distances >= words // 2


def test_zeros_and_nothing():
    layer = shift_layer(Shift().pack(torch.zeros(3, 4)))
    assert layer.total(codes(2, 4)).tolist() == [[0] * 3] * 2
    assert shift_layer(Shift().pack(drawn(3, 4))).total(codes(0, 4)).shape == (0, 3)


def test_what_has_no_shifts_is_refused():
    with pytest.raises(MethodError, match="need powers of two, the form of quantize/power_of_two"):
        shift_layer(Uniform().pack(drawn(3, 4)))
    with pytest.raises(MethodError, match="to the end of the portions"):
        shift_layer(Incremental(portion=0.5).pack(drawn(3, 4)))
    with pytest.raises(MethodError, match="none of a two-dimensional convolution"):
        shift_layer(Shift().pack(drawn(3, 4)), ((1, 1), (0, 0), (1, 1), 1))
    with pytest.raises(MethodError, match="take integers"):
        shift_layer(Shift().pack(drawn(3, 4))).total(drawn(2, 4))
    with pytest.raises(MethodError, match="62 are there"):
        shift_layer(Shift().pack(drawn(3, 4))).total(torch.full((1, 4), 2**60))
