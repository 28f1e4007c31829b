"""Block terms: their special cases, an error that falls, planted blocks, and the grouped layers."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.packed import take, unpack
from lilliput.factorize.block_term import BlockTerm, fitted
from lilliput.factorize.tucker import Tucker
from lilliput.solve import tucker
from lilliput.testing.spread import gaussian


def error(found, tensor):
    return float((sum(tucker.composed(parts) for parts in found) - tensor).square().sum())


def test_one_block_is_tucker():
    weight = gaussian(8, 6, 3, 3).double()
    one = unpack(BlockTerm(blocks=1, rank_out=3, rank_in=2).pack(weight))
    assert torch.allclose(one, unpack(Tucker(rank_out=3, rank_in=2).pack(weight)), atol=1e-10)


def test_blocks_of_rank_one_are_cp_with_whole_kernels():
    packed = BlockTerm(blocks=3, rank_out=1, rank_in=1).pack(gaussian(8, 6, 3, 3).double())
    out, core, inner = (packed.parts[name] for name in ("out", "core", "in"))
    terms = torch.einsum("nr,rc,rs->ncs", out, inner, core.flatten(1)).reshape(8, 6, 3, 3)
    assert torch.allclose(unpack(packed), terms, atol=1e-13)


@pytest.mark.parametrize("blocks", [2, 3])
def test_rounds_never_hurt(blocks):
    tensor = gaussian(9, 8, 9).double()
    errors = [error(fitted(tensor, (2, 2), blocks, n), tensor) for n in (0, 1, 2, 5, 20)]
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(errors))
    assert errors[-1] < 0.999 * errors[0]


def test_planted_blocks_are_recovered():
    """Two blocks whose channels don't overlap: what a grouped convolution is."""
    weight = torch.zeros(8, 6, 3, 3).double()
    for g in range(2):
        bases = gaussian(4, 2, seed=g).double() * 10, gaussian(2, 3, seed=g + 5).double() * 10
        core = gaussian(2, 2, 3, 3, seed=g + 9).double() * (10, 3)[g]
        weight[4 * g : 4 * g + 4, 3 * g : 3 * g + 3] = torch.einsum("na,abyx,bc->ncyx", bases[0], core, bases[1])
    packed = BlockTerm(blocks=2, rank_out=2, rank_in=2, rounds=500).pack(weight)
    assert float((unpack(packed) - weight).norm() / weight.norm()) < 1e-3
    single = Tucker(rank_out=2, rank_in=2).pack(weight)
    assert float((unpack(single) - weight).norm() / weight.norm()) > 0.1


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_layers_do_what_the_composed_weight_does(blocks):
    layer = nn.Conv2d(5, 7, 3, stride=(2, 1), padding=(2, 1), dilation=(1, 2)).double()
    packed = BlockTerm(blocks=blocks, rank_out=2, rank_in=1, force=True).pack(layer.weight.detach())
    x = gaussian(2, 5, 9, 10).double()
    expected = functional.conv2d(x, unpack(packed), layer.bias, layer.stride, layer.padding, layer.dilation)
    made = BlockTerm.layers(packed, layer)
    assert torch.allclose(made(x), expected, atol=1e-12)
    assert made[1].groups == blocks
    assert sum(p.weight.numel() for p in made) == blocks * (5 * 1 + 2 * 1 * 9 + 2 * 7)


@pytest.mark.parametrize("axis", range(4))
def test_cutting_keeps_the_values_of_the_others(axis):
    packed = BlockTerm(blocks=2, rank_out=2, rank_in=2).pack(gaussian(12, 9, 3, 3))
    kept = torch.tensor([0, 2])
    assert torch.allclose(unpack(take(packed, axis, kept)), unpack(packed).index_select(axis, kept), atol=1e-7)


def test_refusals():
    with pytest.raises(NotWorthwhile, match="4 blocks"):
        BlockTerm(blocks=4, rank_out=4, rank_in=4).pack(gaussian(8, 6, 3, 3))
    with pytest.raises(MethodError, match="convolution"):
        BlockTerm().pack(gaussian(8, 6))
    packed = BlockTerm(blocks=2, rank_out=1, rank_in=1).pack(gaussian(8, 6, 3, 3))
    with pytest.raises(MethodError, match="don't make"):
        unpack(packed.with_parts(**{"in": torch.zeros(3, 6)}))
