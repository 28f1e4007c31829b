"""A bound is never below what an operator gives, and for what can explode it is exact."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lilliput.graph.bounds import bound_of, elements
from lilliput.graph.operators import operators

X = torch.rand(2, 3, 4, 5)
MASK = torch.rand(2, 3, 4, 5) > 0.5
PLACES = torch.tensor([[0, 1], [1, 0]])

EXACT = {
    "zeros": ([3, 4],),
    "full": ([3, 4], 1.0),
    "new_ones": (X, [7]),
    "arange": (7,),
    "arange.start": (2, 9),
    "arange.start_step": (2, 9, 2),
    "linspace": (0.0, 1.0, 9),
    "eye": (3,),
    "eye.m": (3, 4),
    "expand": (X[:, :1], [6, 2, 3, -1, 5]),
    "repeat": (X, [2, 1, 1, 2, 1]),
    "repeat_interleave.self_int": (X, 3, 1),
    "cat": ([X, X], 1),
    "constant_pad_nd": (X, [1, 2, -1, 0]),
    "add.Tensor": (X, torch.rand(7, 1, 1, 1, 5)),
    "where.self": (MASK[:, :1], X, torch.rand(1, 3, 1, 1)),
    "linear": (X, torch.rand(6, 5)),
    "matmul": (X, torch.rand(3, 5, 2)),
    "bmm": (X[0], torch.rand(3, 5, 2)),
    "outer": (X.flatten(), torch.rand(3)),
    "einsum": ("abcd,de->abe", [X, torch.rand(5, 2)]),
    "conv2d": (X, torch.rand(6, 3, 2, 3), None, [2, 1], [1, 2], [1, 2]),
    "conv2d.padding": (X, torch.rand(6, 3, 3, 3), None, [1, 1], "same"),
    "conv_transpose2d.input": (X, torch.rand(3, 2, 2, 2), None, [2, 3], [0, 0], [1, 0], 1, [1, 2]),
    "index.Tensor": (X, [PLACES, None, PLACES[0]]),
    "index_select": (X, 2, PLACES[0]),
    "gather": (X, 0, torch.zeros(1, 3, 2, 1, dtype=torch.long)),
    "embedding": (torch.rand(4, 6), PLACES),
    "upsample_nearest2d": (X, [9, 7]),
    "upsample_bilinear2d.vec": (X, None, False, [2.0, 3.0]),
    "scaled_dot_product_attention": (X, X, X[..., :2]),
    "stack": ([X, X],),
    "view_as": (X, X.flatten()),
}

ABOVE = {
    "sum.dim_IntList": (torch.zeros(0, 50), [0]),
    "max": (X,),
    "max.dim": (X, 1),
    "topk": (X, 2),
    "var_mean.correction": (X,),
    "max_pool2d": (X[..., :1, :1], [3, 3], [1, 1], [1, 1], 1, True),
    "avg_pool2d": (X, [2, 2], [1, 1], [1, 1]),
    "adaptive_avg_pool2d": (X, [9, 9]),
    "adaptive_max_pool2d": (X, [9, 9]),
    "split.Tensor": (X, 1),
    "unbind.int": (X, 3),
    "chunk": (X, 2),
    "index.Tensor": (X, [MASK]),
    "meshgrid": ([X.flatten(), X.flatten()],),
    "broadcast_tensors": ([X[:, :1], torch.rand(3, 1, 1)],),
    "bilinear": (X, X, torch.rand(6, 5, 5)),
    "cdist": (X, X),
    "kron": (X, X),
    "diag_embed": (X,),
    "im2col": (X, [2, 2], [1, 1], [1, 1], [1, 1]),
    "grid_sampler": (X, torch.rand(2, 9, 9, 2), 0, 0, False),
    "affine_grid_generator": (torch.rand(2, 2, 3), [2, 3, 8, 9], False),
}


def both(name: str, args: tuple) -> tuple[int, int]:
    full = f"aten.{name}" if "." in name else f"aten.{name}.default"
    call = operators()[full].call
    return bound_of(full, call)(*args), elements(call(*args))


@pytest.mark.parametrize("name", EXACT)
def test_exact(name: str) -> None:
    bound, actual = both(name, EXACT[name])
    assert bound == actual > 0


@pytest.mark.parametrize("name", ABOVE)
def test_above(name: str) -> None:
    bound, actual = both(name, ABOVE[name])
    assert bound >= actual > 0


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from(["matmul", "add.Tensor"]),
)
def test_any_shapes_that_fit(left: list[int], right: list[int], name: str) -> None:
    try:
        bound, actual = both(name, (torch.zeros(left), torch.zeros(right)))
    except RuntimeError:
        return
    assert bound == actual


def test_a_size_of_zero_hides_nothing() -> None:
    call = torch.ops.aten.zeros.default
    assert bound_of("aten.zeros.default", call)([0, 2**40]) == 2**40
    assert math.prod([0, 2**40]) == 0
