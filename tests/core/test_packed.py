"""Packed weights as data: parts, trees, and the steps of a rule."""

from dataclasses import replace

import pytest
import torch

from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed, leaves, map_leaves, pack_steps, unpack
from lilliput.factorize.svd import Svd
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.float16 import Float16
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans
from lilliput.testing.spread import decaying, gaussian


def test_no_steps_leave_the_weight():
    weight = gaussian(3, 4)
    assert pack_steps(weight, ()) is weight
    assert unpack(weight) is weight


def test_pruned_and_shared_is_a_dense_code_with_zero_for_pruned():
    weight = gaussian(10, 10)
    packed = pack_steps(weight, (Magnitude(sparsity=0.7), KMeans(bits=2)))
    assert [name for name, _ in leaves(packed)] == ["values.codes", "values.codebook"]
    codes = dict(leaves(packed))["values.codes"]
    assert codes.shape == (10, 10)
    assert int((codes == 0).sum()) == 70
    assert torch.equal(unpack(packed) == 0, codes == 0)


def test_a_step_that_keeps_no_zeros_gets_the_survivors_alone():
    packed = pack_steps(gaussian(10, 10), (Magnitude(sparsity=0.7), Float16()))
    assert {name: tuple(t.shape) for name, t in leaves(packed)} == {"mask": (10, 10), "values.values": (30,)}
    assert int((unpack(packed) != 0).sum()) == 30


def test_factors_are_quantized_each():
    packed = pack_steps(decaying(20, 24), (Svd(rank=3), Uniform(bits=6)))
    assert [name for name, _ in leaves(packed)] == ["u.codes", "u.scale", "v.codes", "v.scale"]
    product = unpack(packed.parts["u"]) @ unpack(packed.parts["v"])
    assert torch.equal(unpack(packed), product)


def test_map_leaves_keeps_the_tree():
    packed = pack_steps(decaying(20, 24), (Svd(rank=3), Uniform(bits=6)))
    doubled = map_leaves(packed, lambda t: t * 2 if t.dtype.is_floating_point else t)
    assert torch.allclose(unpack(doubled), 4 * unpack(packed))


@pytest.mark.parametrize(
    ("dtype", "integer", "fine"),
    [
        (torch.bool, True, True),
        (torch.uint8, True, True),
        (torch.int64, None, True),
        (torch.float16, False, True),
        (torch.float32, True, False),
        (torch.int8, False, False),
        (torch.complex64, True, False),
        (torch.complex64, False, False),
        (torch.complex64, None, False),
        (torch.float8_e4m3fn, False, False),
    ],
)
def test_types_of_parts(dtype, integer, fine):
    packed = Packed("quantize/uniform", (2,), torch.float32, {"x": torch.zeros(2).to(dtype)})
    if fine:
        assert packed.tensor("x", integer=integer).dtype == dtype
    else:
        with pytest.raises(MethodError, match=r"quantize/uniform: part 'x' has dtype torch\."):
            packed.tensor("x", integer=integer)


def test_a_missing_part_a_wrong_shape_and_a_part_that_is_packed():
    inner = Uniform().pack(torch.ones(2))
    packed = Packed("quantize/uniform", (2,), torch.float32, {"x": torch.zeros(2), "y": inner})
    for name, shape in (("z", None), ("y", None), ("x", (3,))):
        with pytest.raises(MethodError, match=f"part '{name}'"):
            packed.tensor(name, shape=shape)


def test_what_unpack_gives_must_be_what_was_declared():
    packed = Float16().pack(torch.ones(4))
    with pytest.raises(MethodError):
        unpack(replace(packed, shape=(2, 2)))
    with pytest.raises(MethodError, match="not a weight method"):
        unpack(replace(packed, method="prune/unstructured"))
    with pytest.raises(MethodError, match="no family"):
        unpack(replace(packed, method="os/system"))
