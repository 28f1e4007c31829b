"""How many elements a node's result would have, known from its arguments before memory is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

Bound = Callable[..., int]


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, at most 200 characters.

    Args:
        error: any.
    """
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def elements(result: Any) -> int:
    """Counts the elements of a result.

    Args:
        result: a tensor, a number, or a tuple or list of them.
    """
    if isinstance(result, Tensor):
        return result.numel()
    return sum(map(elements, result)) if isinstance(result, tuple | list) else 0


def bound_of(operator: str, call: Callable[..., Any]) -> Bound:
    """Finds the function that bounds an operator's result.

    Args:
        operator: full name.
        call: the operator; run on the meta device if it has no bound of its own.

    Returns:
        A function of the operator's arguments that gives a number of elements, never too small a one.

    Example:
        >>> bound = bound_of("aten.mm.default", torch.ops.aten.mm.default)
        >>> bound(torch.zeros(1000, 1), torch.zeros(1, 1000))
        1000000
    """
    if not operator.startswith("aten."):
        return _nothing
    known = _bounds().get(operator.removeprefix("aten.").partition(".")[0])
    return known or (lambda *args, **kwargs: _on_meta(call, args, kwargs))


def _on_meta(call: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> int:
    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return type(value)(map(move, value)) if isinstance(value, tuple | list) else value

    with torch.no_grad():
        return elements(call(*map(move, args), **{name: move(value) for name, value in kwargs.items()}))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _room(tensor: Tensor) -> int:
    """Counts elements as if no dimension were empty: to reduce an empty one gives elements out of none."""
    return math.prod(max(size, 1) for size in tensor.shape)


def _nothing(*args: Any, **kwargs: Any) -> int:
    return 0


def _largest(*args: Any, **kwargs: Any) -> int:
    return max((_room(tensor) for tensor in _tensors((*args, *kwargs.values()))), default=1)


def _several(*args: Any, **kwargs: Any) -> int:
    return 8 * _largest(*args, **kwargs)


def _sum(*args: Any, **kwargs: Any) -> int:
    return sum(_room(tensor) for tensor in _tensors(args))


def _first(x: Tensor, *args: Any, **kwargs: Any) -> int:
    return _room(x)


def _second(x: Tensor, other: Tensor, *args: Any, **kwargs: Any) -> int:
    return _room(other)


def _broadcast_shape(tensors: Iterable[Tensor]) -> list[int]:
    """Sizes from the last dimension on."""
    sizes: list[int] = []
    for tensor in tensors:
        for place, size in enumerate(reversed(tensor.shape)):
            if place == len(sizes):
                sizes.append(1)
            sizes[place] = max(sizes[place], size)
    return sizes


def _broadcast(*args: Any, **kwargs: Any) -> int:
    return math.prod(_broadcast_shape(_tensors((*args, *kwargs.values()))))


def _size(size: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return math.prod(max(int(item), 1) for item in size)


def _new(x: Tensor, size: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return _size(size)


def _arange(*args: Any, **kwargs: Any) -> int:
    start, end = (0, args[0]) if len(args) == 1 else args[:2]
    step = args[2] if len(args) > 2 else 1
    return math.ceil(abs(end - start) / abs(step)) if step else 0


def _linspace(start: Any, end: Any, steps: int, **kwargs: Any) -> int:
    return max(steps, 1)


def _einsum(equation: str, tensors: Sequence[Tensor], **kwargs: Any) -> int:
    left, arrow, right = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    rest: list[Tensor] = []
    for word, tensor in zip(left.split(","), tensors):
        before, dots, after = word.partition("...")
        named = [*zip(before, tensor.shape), *zip(reversed(after), reversed(tensor.shape))]
        for letter, size in named:
            sizes[letter] = max(sizes.get(letter, 1), size)
        if dots:
            rest.append(tensor[(0,) * len(before)] if before else tensor)
            for _ in after:
                rest[-1] = rest[-1].select(-1, 0)
    shown = right.replace("...", "") if arrow else sizes
    return math.prod(sizes.get(letter, 1) for letter in shown) * math.prod(_broadcast_shape(rest))


def _expand(x: Tensor, size: Sequence[int], *args: Any, **kwargs: Any) -> int:
    own = [1] * max(len(size) - x.dim(), 0) + list(x.shape)
    return math.prod(have if want == -1 else want for have, want in zip(own, size))


def _repeat(x: Tensor, repeats: Any, *args: Any, **kwargs: Any) -> int:
    return _room(x) * _size(_items(repeats, 1))


def _pad(x: Tensor, pads: Sequence[int], *args: Any, **kwargs: Any) -> int:
    sizes = list(reversed(x.shape))
    for place in range(min(len(pads) // 2, len(sizes))):
        sizes[place] += pads[2 * place] + pads[2 * place + 1]
    return math.prod(max(size, 0) for size in sizes)


def _pieces(count: int, x: Tensor) -> int:
    # A tensor object takes some 500 bytes, however little is in it.
    return 128 * max(count, 0) + _room(x)


def _split(x: Tensor, size: Any, dim: int = 0) -> int:
    if isinstance(size, tuple | list):
        return _pieces(len(size), x)
    return _pieces(x.shape[dim] // max(size, 1) + 1, x)


def _unbind(x: Tensor, dim: int = 0) -> int:
    return _pieces(x.shape[dim], x)


def _chunk(x: Tensor, count: int, dim: int = 0) -> int:
    return _pieces(count, x)


def _items(value: Any, count: int) -> list[int]:
    items = list(value) if isinstance(value, tuple | list) else [value]
    return items * count if len(items) == 1 else items


def _convolution(x: Tensor, weight: Tensor, bias: Any = None, *rest: Any) -> int:
    given: tuple[Any, ...] = (*rest, *(1, 0, 1)[len(rest) :])
    stride, padding, dilation = given[:3]
    dims = weight.dim() - 2
    pads = [0] * dims if isinstance(padding, str) else _items(padding, dims)
    sizes = []
    for size, kernel, pad, step, spread in zip(
        x.shape[-dims:], weight.shape[2:], pads, _items(stride, dims), _items(dilation, dims)
    ):
        reach = 0 if padding == "same" else spread * (kernel - 1)
        sizes.append(max((size + 2 * pad - reach - 1) // max(step, 1) + 1, 0))
    batch = x.shape[0] if x.dim() == dims + 2 else 1
    return batch * weight.shape[0] * math.prod(sizes)


def _transposed(x: Tensor, weight: Tensor, bias: Any = None, *rest: Any) -> int:
    dims = weight.dim() - 2
    # Stride, padding, padding of the output, groups and dilation; cropped parts may be computed first.
    given = (*rest, *(1, 0, 0, 1, 1)[len(rest) :])
    sizes = []
    for place, (size, kernel) in enumerate(zip(x.shape[-dims:], weight.shape[2:])):
        step, more, spread = (_items(given[index], dims)[place] for index in (0, 2, 4))
        sizes.append(max((size - 1) * step + spread * (kernel - 1) + more + 1, 0))
    batch = x.shape[0] if x.dim() == dims + 2 else 1
    return batch * weight.shape[1] * int(given[3]) * math.prod(sizes)


def _linear(x: Tensor, weight: Tensor, bias: Any = None) -> int:
    return math.prod(x.shape[:-1]) * math.prod(weight.shape[:-1])


def _matmul(x: Tensor, y: Tensor) -> int:
    left = x.shape if x.dim() > 1 else (1, *x.shape)
    right = y.shape if y.dim() > 1 else (*y.shape, 1)
    stack = [1] * max(len(left), len(right))
    for shape in (left[:-2], right[:-2]):
        for place, size in enumerate(reversed(shape)):
            stack[place] = max(stack[place], size)
    return math.prod(stack) * left[-2] * right[-1]


def _added_product(x: Tensor, left: Tensor, right: Tensor, **kwargs: Any) -> int:
    return max(_room(x), _matmul(left, right))


def _outer(x: Tensor, y: Tensor) -> int:
    return _room(x) * _room(y)


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> int:
    given = [index for index in indices if index is not None]
    if any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return _room(x) * max(_broadcast(*given), 1)
    kept = [size for place, size in enumerate(x.shape) if place >= len(indices) or indices[place] is None]
    return math.prod(kept) * _broadcast(*given)


def _index_select(x: Tensor, dim: int, index: Tensor) -> int:
    return _room(x) // max(x.shape[dim], 1) * _room(index) if x.dim() else 1


def _gather(x: Tensor, dim: int, index: Tensor, **kwargs: Any) -> int:
    return _room(index)


def _embedding(weight: Tensor, indices: Tensor, *rest: Any) -> int:
    return _room(indices) * math.prod(weight.shape[1:])


def _resize(x: Tensor, size: Any, *rest: Any, **kwargs: Any) -> int:
    if size is not None:
        return math.prod(x.shape[:2]) * _size(_items(size, 1))
    factors = next((item for item in reversed(rest) if isinstance(item, tuple | list)), None)
    factors = kwargs.get("scale_factors", factors) or ()
    return _room(x) * math.ceil(math.prod(max(factor, 1.0) for factor in factors))


def _adaptive(x: Tensor, size: Any, *rest: Any) -> int:
    sizes = _items(size, 1)
    return 2 * math.prod(x.shape[: x.dim() - len(sizes)]) * _size(sizes)


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **kwargs: Any) -> int:
    return math.prod(_broadcast_shape([query[..., :1], key[..., :1, :1], value[..., :1, :1]])) * value.shape[-1]


def _recurrent(x: Tensor, hx: Any, *rest: Any, **kwargs: Any) -> int:
    state = hx[0] if isinstance(hx, tuple | list) else hx
    return int(2 * math.prod(x.shape[:-1]) * state.shape[-1] + 2 * _room(state))


# Operators by the function that bounds them; each stands for all of its overloads.
_NAMES: dict[Bound, str] = {
    _largest: """
        abs neg positive exp exp2 expm1 log log1p log2 log10 sqrt rsqrt reciprocal square sign sgn sin cos tan asin acos
        atan sinh cosh tanh asinh acosh atanh erf erfc erfinv lgamma sinc floor ceil round trunc frac sigmoid logit relu
        relu6 hardswish hardsigmoid hardtanh silu gelu mish elu selu celu leaky_relu softplus log_sigmoid prelu
        threshold hardshrink softshrink glu logical_not bitwise_not isnan isinf isfinite nan_to_num deg2rad rad2deg fill
        sum mean amax amin argmax argmin prod any all var std norm linalg_vector_norm logsumexp cumsum cumprod argsort
        softmax log_softmax _softmax _log_softmax view reshape flatten unflatten squeeze unsqueeze transpose permute t
        movedim swapaxes mT numpy_T narrow select slice flip roll rot90 tril triu diagonal pixel_shuffle pixel_unshuffle
        channel_shuffle clone contiguous detach alias to zeros_like ones_like full_like select_scatter slice_scatter
        scatter scatter_add index_put batch_norm layer_norm group_norm instance_norm rms_norm mv dot bucketize
        scalar_tensor
        """,
    _several: """
        var_mean std_mean topk sort median kthvalue max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d
        avg_pool2d avg_pool3d lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
        """,
    _broadcast: """
        clamp clip clamp_min clamp_max add sub mul div true_divide floor_divide remainder fmod pow rsub maximum minimum
        atan2 hypot copysign logaddexp xlogy eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or
        bitwise_xor __and__ __or__ __xor__ bitwise_left_shift bitwise_right_shift where masked_fill lerp addcmul addcdiv
        _prelu_kernel cosine_similarity
        """,
    _first: "type_as",
    _second: "expand_as view_as reshape_as",
    _sum: "cat stack",
    _size: "zeros ones full",
    _new: "new_zeros new_ones new_full",
    _arange: "arange",
    _expand: "expand broadcast_to",
    _repeat: "repeat tile repeat_interleave",
    _linspace: "linspace",
    _einsum: "einsum",
    _pad: """
        pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d
        """,
    _split: "split split_with_sizes",
    _unbind: "unbind",
    _chunk: "chunk tensor_split",
    _convolution: "conv1d conv2d conv3d",
    _transposed: "conv_transpose1d conv_transpose2d conv_transpose3d",
    _linear: "linear",
    _matmul: "mm bmm matmul",
    _added_product: "addmm baddbmm",
    _outer: "outer",
    _index: "index",
    _index_select: "index_select",
    _gather: "gather",
    _embedding: "embedding",
    _resize: """
        upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
        upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d
        _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        """,
    _adaptive: """
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d
        adaptive_max_pool2d
        """,
    _attention: "scaled_dot_product_attention",
    _recurrent: "lstm gru rnn_tanh rnn_relu",
    _nothing: "sym_size sym_numel",
}


def _lstm_shapes(x: Tensor, hx: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (*_recurrent_shapes(x, hx[0], *rest), hx[1])


def _recurrent_shapes(x: Tensor, hx: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty((*x.shape[:-1], hx.shape[-1] * (2 if rest[5] else 1))), hx


# Stand-ins for what loops over time on the meta device.
SHAPES: dict[str, Callable[..., Any]] = {
    "aten.lstm.input": _lstm_shapes,
    "aten.gru.input": _recurrent_shapes,
    "aten.rnn_tanh.input": _recurrent_shapes,
    "aten.rnn_relu.input": _recurrent_shapes,
}


@cache
def _bounds() -> dict[str, Bound]:
    table = {name: bound for bound, names in _NAMES.items() for name in names.split()}
    # max and min: of all, along a dimension (values and places), or of two tensors.
    both = {"max": lambda *args, **kwargs: 2 * _broadcast(*args, **kwargs)}
    return table | both | {"min": both["max"], "eye": lambda n, m=None, **kwargs: n * (n if m is None else m)}
