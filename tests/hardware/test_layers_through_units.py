"""Whole layers that our quantizers packed: through the units, through our kernels, through Verilog, bit for bit.

Inputs are whole numbers, and steps and scales powers of two, so that what kernels give in float32 is exact as well.
"""

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional

from lilliput.core import kernel
from lilliput.core.activations import Quantized
from lilliput.core.packed import pack_steps, unpack
from lilliput.graph.ir import InputRef, Node, TensorRef
from lilliput.hardware import verilog
from lilliput.hardware.arithmetic import Shift, ShiftAdd, SignFlip, Skip, Table, Unit
from lilliput.hardware.dot_units import Centroids, Xnor
from lilliput.kernels import binary_linear, integer_conv, ternary
from lilliput.kernels.bit_layers import Codes, Steps, pack_planes, plane_layer, sign_planes, xnor_layer
from lilliput.kernels.codebook_linear import whole_values
from lilliput.kernels.found import serving
from lilliput.quantize.activations.uniform import Uniform as Activations
from lilliput.quantize.admm import Admm
from lilliput.quantize.binary import Binary
from lilliput.quantize.binary_network import BinaryNetwork
from lilliput.quantize.dorefa import Dorefa
from lilliput.quantize.incremental import Incremental
from lilliput.quantize.shift import Shift as ShiftCNN
from lilliput.quantize.ternary import Ternary
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans

STRIDE, PADDING = (2, 1), (1, 1)
CONV = Node("aten.conv2d.default", (InputRef(0), TensorRef("weight"), None, STRIDE, PADDING))
LINEAR = Node("aten.linear.default", (InputRef(0), TensorRef("weight"), None))
GEOMETRY = [3, 3, *STRIDE, *PADDING, 1, 1]
iverilog = pytest.mark.skipif(not verilog.installed(), reason="needs Icarus Verilog (apt install iverilog)")


@dataclass
class Case:
    """A layer: what the unit is given, and what its kernels make of the same.

    `codes` is (outputs, n), `rows` (places, n); `kernels` returns results by name, (places, outputs), or of a
    convolution (1, outputs, height, width), to be the unit's sums times `worth`.
    """

    unit: object
    codes: torch.Tensor
    rows: torch.Tensor
    kernels: object
    worth: object = 1.0


def weights(*shape):
    """Of which the largest is 1, so that scales made of it are powers of two."""
    torch.manual_seed(3)
    found = torch.randn(*(shape or (5, 6, 3, 3))) / 4
    return found.div_(found.abs().max())


def maps(low, high):
    torch.manual_seed(4)
    return torch.randint(low, high + 1, (1, 6, 5, 4))


def windows(x, border=0):
    """The rows that a convolution's outputs are products of, (places, n)."""
    x = functional.pad(x.double(), (PADDING[1],) * 2 + (PADDING[0],) * 2, value=border)
    return functional.unfold(x, (3, 3), 1, 0, STRIDE)[0].T.long()


def served(packed, node, x, step=0.5):
    """Results of the kernels that serve a layer whose inputs are 8-bit numbers of a step."""
    inputs = Quantized(Activations(bits=8, form="symmetric"), {"scale": step, "zero": 0.0})
    made = dict(serving(packed, node, inputs))
    made = {name: module for name, module in made.items() if name in ("integer_conv", "codebook_linear")}
    assert made
    return {name: module(x * step) for name, module in made.items()}


def sign_flip():
    """BWN, and the scales of each filter on top."""
    packed, x, unit = Binary().pack(weights()), maps(-128, 127), SignFlip(8)
    signs, scale = packed.parts["codes"].reshape(5, -1), packed.parts["scale"]
    bits = ternary.prepare(signs.reshape(5, 6, 3, 3))

    def kernels():
        last = x.permute(0, 2, 3, 1).to(torch.int8)
        yield "whole", ternary.ternary_total(last, bits, 5, GEOMETRY, 0)
        yield "scaled", ternary.ternary_conv(last, bits, GEOMETRY, 0, scale, None, None)

    assert torch.equal(unpack(packed).reshape(5, -1), signs * scale[:, None])
    return Case(unit, unit.encode(signs), windows(x), kernels, {"scaled": scale})


def sign_flip_by_planes():
    """One bit of weight, and the eight of the input as planes."""
    packed, x, unit = Dorefa(bits=1).pack(weights()), maps(-127, 127), SignFlip(8)
    signs = packed.parts["codes"]

    def kernels():
        own = plane_layer((signs > 0).long(), Codes(1, 2, -1), Codes(8, 1, -128), Steps(STRIDE, PADDING))
        yield "planes", own.total(pack_planes((x + 128).byte(), 8))

    return Case(unit, unit.encode(signs.reshape(5, -1)), windows(x), kernels)


def skip():
    """TWN."""
    packed, x, unit = Ternary().pack(weights()), maps(-128, 127), Skip(8)
    codes, scale = packed.parts["codes"], packed.parts["scale"]
    assert set(codes.flatten().tolist()) == {-1, 0, 1}

    def kernels():
        last, bits = x.permute(0, 2, 3, 1).to(torch.int8), ternary.prepare(codes)
        yield "whole", ternary.ternary_total(last, bits, 5, GEOMETRY, 0)
        yield "scaled", ternary.ternary_conv(last, bits, GEOMETRY, 0, scale, None, None)

    return Case(unit, unit.encode(codes.reshape(5, -1)), windows(x), kernels, {"scaled": scale})


def shift_of_five_values():
    """ADMM's 0, +-1, +-2."""
    packed, x, unit = Admm(top=2).pack(weights()), maps(-128, 127), Shift(8, 0, 1)
    levels = packed.parts["codes"]
    assert set(levels.flatten().tolist()) == {-2, -1, 0, 1, 2}

    def kernels():
        # A code is 0, or a sign and one more than the shift: of these levels the levels themselves.
        code = integer_conv.prepare(levels[None])
        yield "shift_conv", integer_conv.shift_conv(x.short(), code, 5, [*GEOMETRY, 1])

    return Case(unit, unit.encode(levels.reshape(5, -1)), windows(x), kernels)


def shift_of_inq():
    packed, x = Incremental(bits=5).pack(weights()), maps(-127, 127)
    top = packed.settings["top"]
    unit = Shift(8, top - 7, top)
    codes = unit.encode(unpack(packed).reshape(5, -1))
    return Case(unit, codes, windows(x), lambda: served(packed, CONV, x).items(), 0.5 * 2.0**-unit.scale_bits)


def table():
    """DoReFa-Net with 3 bits of weight and 4 of input."""
    packed, x, unit = Dorefa(bits=3).pack(weights()), maps(0, 15), Table(4, weight_bits=3)
    levels = packed.parts["codes"]

    def kernels():
        own = plane_layer((levels.long() + 7) // 2, Codes(3, 2, -7), Codes(4), Steps(STRIDE, PADDING))
        yield "planes", own.total(pack_planes(x.byte(), 4))

    return Case(unit, unit.encode(levels.reshape(5, -1)), windows(x), kernels)


def shift_add():
    packed, x, unit = ShiftCNN(terms=2).pack(weights()), maps(-127, 127), ShiftAdd(8, terms=2)
    assert float(packed.parts["scale"]) == 1.0
    codes = unit.encode(unpack(packed).reshape(5, -1))
    return Case(unit, codes, windows(x), lambda: served(packed, CONV, x).items(), 0.5 * 2.0**-unit.scale_bits)


def xnor():
    """BinaryNet, whose maps have -1 around them."""
    packed, x = BinaryNetwork().pack(weights()), maps(0, 1) * 2 - 1
    signs = unpack(packed)

    def kernels():
        yield "bit_conv", xnor_layer(signs, Steps(STRIDE, PADDING), border=-1).total(sign_planes(x.float()))

    return Case(Xnor(54), (signs.reshape(5, -1) > 0).long(), (windows(x, -1) > 0).long(), kernels)


def xnor_of_a_linear_layer():
    packed, x = BinaryNetwork().pack(weights(5, 70)), torch.randint(2, (12, 70)) * 2 - 1
    signs = unpack(packed)

    def kernels():
        held = binary_linear.prepare(signs)
        yield "binary_linear", binary_linear.binary_linear(x.float(), held, torch.ones(5), None, 70)

    return Case(Xnor(70), (signs > 0).long(), (x > 0).long(), kernels)


def shared(weight, node, x, rows):
    """Deep Compression: shared values, these in 8 bits; zeros stay zeros, by a code of their own."""
    weight = torch.where(weight.abs() < 0.1, 0.0, weight)
    packed = pack_steps(weight, (KMeans(bits=3), Uniform(bits=8, per="tensor")))
    book, scale = whole_values(
        packed.parts["codebook"], Quantized(Activations(bits=8, form="symmetric"), {"scale": 1.0, "zero": 0.0})
    )
    unit = Centroids(8, weight[0].numel(), (0, *book.tolist()))
    # The scale is no power of two: the sums are scaled in float32 as the kernels do, once.
    worth = torch.tensor(scale * 0.5, dtype=torch.float32)
    return Case(unit, packed.parts["codes"].long().flatten(1), rows, lambda: served(packed, node, x).items(), worth)


def centroids():
    x = maps(-127, 127)
    return shared(weights(), CONV, x, windows(x))


def centroids_of_a_linear_layer():
    x = torch.randint(-127, 128, (12, 40))
    return shared(weights(5, 40), LINEAR, x, x)


CASES = [
    sign_flip, sign_flip_by_planes, skip, shift_of_five_values, shift_of_inq, table, shift_add, xnor,
    xnor_of_a_linear_layer, centroids, centroids_of_a_linear_layer,
]  # fmt: skip


def sums_of(case):
    """What the unit makes of the layer, (places, outputs)."""
    if isinstance(case.unit, Unit):
        return case.unit.linear(case.codes, case.rows)
    return case.unit.dot(case.codes[None], case.rows[:, None])


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("variant", kernel.variants())
def test_a_layer_through_a_unit_is_what_kernels_give(make, variant):
    case = make()
    sums = sums_of(case)
    seen = 0
    with kernel.using(variant):
        for name, found in case.kernels():
            seen += 1
            worth = case.worth.get(name, 1.0) if isinstance(case.worth, dict) else case.worth
            own = sums.float() * worth
            assert float(sums.abs().max()) < 2**24, "float32 holds the sums"
            rows = found[0].flatten(1).T if found.dim() == 4 else found
            assert rows.shape == own.shape
            assert torch.equal(rows.float(), own), name
    assert seen


@iverilog
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_layer_through_verilog_is_what_the_unit_gives(make):
    """Every product of it, or every dot product, comes out of the simulated circuit."""
    case = make()
    sums, places, outputs = sums_of(case), len(case.rows), len(case.codes)
    pairs = [(code, row) for row in case.rows for code in case.codes]
    if isinstance(case.unit, Unit):
        words = [pair for code, row in pairs for pair in zip(code.tolist(), row.tolist())]
        found = torch.tensor(verilog.simulate(case.unit, words)).reshape(places, outputs, -1).sum(-1)
    else:
        words = [case.unit.words(*pair) for pair in pairs]
        found = torch.tensor(verilog.simulate(case.unit, words)).reshape(places, outputs)
    assert torch.equal(found, sums)
