"""The operators that a graph may use: a fixed table from name to function, each with its typed arguments."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

# Inference only: nothing in place, nothing random, nothing that reads memory it didn't write, and no output
# whose shape depends on values. A bare name means its `default` overload.
_ATEN = """
abs neg positive exp exp2 expm1 log log1p log2 log10 sqrt rsqrt reciprocal square sign sgn sin cos tan asin acos atan
sinh cosh tanh asinh acosh atanh erf erfc erfinv lgamma sinc floor ceil round round.decimals trunc frac sigmoid logit
relu relu6 hardswish hardsigmoid hardtanh silu gelu mish elu selu celu leaky_relu softplus log_sigmoid prelu
_prelu_kernel threshold hardshrink softshrink glu logical_not bitwise_not isnan isinf isfinite nan_to_num
clamp clamp.Tensor clip clip.Tensor clamp_min clamp_min.Tensor clamp_max clamp_max.Tensor deg2rad rad2deg

add.Tensor add.Scalar sub.Tensor sub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar div.Tensor_mode
div.Scalar_mode true_divide.Tensor floor_divide floor_divide.Scalar remainder.Tensor remainder.Scalar fmod.Tensor
fmod.Scalar pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar rsub.Tensor rsub.Scalar maximum minimum max.other min.other
atan2 hypot copysign.Tensor logaddexp xlogy.Tensor eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar
le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar logical_and logical_or logical_xor bitwise_and.Tensor
bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar __and__.Tensor
__and__.Scalar __or__.Tensor __or__.Scalar __xor__.Tensor __xor__.Scalar bitwise_left_shift.Tensor_Scalar
bitwise_right_shift.Tensor_Scalar where.self where.ScalarOther where.ScalarSelf where.Scalar masked_fill.Scalar
masked_fill.Tensor lerp.Scalar lerp.Tensor addcmul addcdiv fill.Scalar fill.Tensor

sum sum.dim_IntList mean mean.dim amax amin max max.dim min min.dim argmax argmin prod prod.dim_int any any.dim any.dims
all all.dim all.dims var var.dim var.correction std std.dim std.correction var_mean.correction std_mean.correction
norm.Scalar norm.ScalarOpt_dim linalg_vector_norm logsumexp cumsum cumprod topk sort sort.stable argsort median.dim
kthvalue softmax.int log_softmax.int _softmax _log_softmax

view reshape flatten.using_ints unflatten.int squeeze squeeze.dim squeeze.dims unsqueeze transpose.int permute t
movedim.int movedim.intlist swapaxes mT numpy_T expand expand_as view_as reshape_as repeat tile
repeat_interleave.self_int cat stack split.Tensor split.sizes split_with_sizes chunk tensor_split.sections unbind.int
narrow select.int slice.Tensor flip roll rot90 tril triu diagonal diag_embed pad constant_pad_nd reflection_pad1d
reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle
channel_shuffle unfold im2col col2im clone contiguous detach alias to.dtype type_as
meshgrid meshgrid.indexing broadcast_tensors broadcast_to

index.Tensor index_select gather take_along_dim embedding select_scatter slice_scatter scatter.src scatter.value
scatter_add index_put bucketize.Tensor

linear addmm mm bmm baddbmm matmul mv dot addmv outer einsum bilinear tensordot cosine_similarity cdist kron
conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding convolution conv_transpose1d conv_transpose2d.input
conv_transpose3d.input
batch_norm layer_norm group_norm instance_norm rms_norm
max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d
upsample_nearest1d upsample_nearest1d.vec upsample_nearest2d upsample_nearest2d.vec upsample_nearest3d
upsample_nearest3d.vec upsample_linear1d upsample_linear1d.vec upsample_bilinear2d upsample_bilinear2d.vec
upsample_bicubic2d upsample_bicubic2d.vec upsample_trilinear3d upsample_trilinear3d.vec _upsample_nearest_exact1d.vec
_upsample_nearest_exact2d.vec _upsample_bilinear2d_aa.vec _upsample_bicubic2d_aa.vec grid_sampler affine_grid_generator
scaled_dot_product_attention lstm.input gru.input rnn_tanh.input rnn_relu.input lstm_cell gru_cell rnn_tanh_cell
rnn_relu_cell

zeros ones full zeros_like ones_like full_like new_zeros new_ones new_full arange arange.start arange.start_step
linspace eye eye.m scalar_tensor sym_size.int sym_numel
"""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of an operator.

    Args:
        name: as in the schema.
        kind: `tensor`, `int`, `float`, `bool`, `number`, `str`, `dtype`, `item` (of a tuple) or
            `absent` (must be left at its default).
        many: a list of that kind.
        optional: None is taken; `optional_items`: so are items of the list that are None.
        size: a list of this declared length also takes a single item.
        default: left away when equal; `required` when there is none.
    """

    name: str
    kind: str
    many: bool = False
    optional: bool = False
    optional_items: bool = False
    size: int | None = None
    default: Any = None
    required: bool = True
    keyword: bool = False


@dataclass(frozen=True, slots=True)
class Operator:
    """An allow-listed operator.

    Args:
        name: full name, as `"aten.linear.default"` or `"sym.mul"`.
        call: the function itself.
        parameters: positional ones first.
        results: kind of each result: `tensor`, `tensors` (a list), `int` or `number`.
    """

    name: str
    call: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    results: tuple[str, ...]

    @property
    def creates(self) -> bool:
        """Whether it makes a tensor of nothing, and so must be told the device."""
        names = {parameter.name for parameter in self.parameters}
        return "device" in names and not any(parameter.kind == "tensor" for parameter in self.parameters)

    @property
    def positional(self) -> tuple[Parameter, ...]:
        """The parameters that may be given by position."""
        return tuple(parameter for parameter in self.parameters if not parameter.keyword)


_BASE = {
    "Tensor": "tensor",
    "int": "int",
    "SymInt": "int",
    "float": "float",
    "bool": "bool",
    "number": "number",
    "Scalar": "number",
    "str": "str",
    "ScalarType": "dtype",
}
_RESULTS = {"Tensor": "tensor", "List[Tensor]": "tensors", "int": "int", "SymInt": "int", "float": "number"}


def _unwrap(text: str, wrapper: str) -> tuple[str, bool]:
    inside = text.startswith(wrapper + "[")
    return (text[len(wrapper) + 1 : -1], True) if inside else (text, False)


def _parameter(argument: Any) -> Parameter:
    text, optional = _unwrap(str(argument.real_type), "Optional")
    text, many = _unwrap(text, "List")
    text, optional_items = _unwrap(text, "Optional")
    kind = _BASE.get(text, "absent")
    # Devices, memory formats, layouts and pinned memory are not for a file to choose.
    if argument.name in ("pin_memory", "non_blocking"):
        kind = "absent"
    default = argument.default_value
    return Parameter(
        name=argument.name,
        kind=kind,
        many=many,
        optional=optional,
        optional_items=optional_items,
        size=argument.N,
        default=tuple(default) if isinstance(default, list) else default,
        required=not argument.has_default_value(),
        keyword=argument.kwarg_only,
    )


def _from_schema(name: str, overload: Any) -> Operator:
    schema = overload._schema
    parameters = tuple(_parameter(argument) for argument in schema.arguments)
    return Operator(name, overload, parameters, tuple(_RESULTS[str(result.type)] for result in schema.returns))


def _aten() -> dict[str, Operator]:
    found = {}
    for word in _ATEN.split():
        packet, _, overload = word.partition(".")
        name = f"aten.{packet}.{overload or 'default'}"
        # An overload that this version of torch doesn't have is simply not allowed.
        function = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
        if function is not None:
            found[name] = _from_schema(name, function)
    return found


def _whole(value: float | int) -> int:
    """Integers of open sizes stay within 64 bits, however a file multiplies them."""
    if isinstance(value, float) and not math.isfinite(value):
        raise OverflowError("a size is not finite")
    result = int(value)
    if not -(2**63) <= result < 2**63:
        raise OverflowError("a size exceeds 64 bits")
    return result


def _integer(function: Callable[..., Any]) -> Callable[..., int]:
    def bounded(*values: Any) -> int:
        return _whole(function(*values))

    return bounded


def _symbolic() -> dict[str, Operator]:
    two = (Parameter("a", "number"), Parameter("b", "number"))
    one = (Parameter("a", "number"),)
    integers = (Parameter("a", "int"), Parameter("b", "int"))
    table = [
        Operator("sym.add", _integer(operator.add), integers, ("int",)),
        Operator("sym.sub", _integer(operator.sub), integers, ("int",)),
        Operator("sym.mul", _integer(operator.mul), integers, ("int",)),
        Operator("sym.floordiv", _integer(operator.floordiv), integers, ("int",)),
        Operator("sym.mod", _integer(operator.mod), integers, ("int",)),
        Operator("sym.neg", _integer(operator.neg), (Parameter("a", "int"),), ("int",)),
        Operator("sym.max", _integer(max), integers, ("int",)),
        Operator("sym.min", _integer(min), integers, ("int",)),
        Operator("sym.floor", _integer(math.floor), one, ("int",)),
        Operator("sym.ceil", _integer(math.ceil), one, ("int",)),
        Operator("sym.int", _integer(int), one, ("int",)),
        Operator("sym.float", float, one, ("number",)),
        Operator("sym.truediv", operator.truediv, two, ("number",)),
        Operator("sym.addf", operator.add, two, ("number",)),
        Operator("sym.subf", operator.sub, two, ("number",)),
        Operator("sym.mulf", operator.mul, two, ("number",)),
        Operator("item", operator.getitem, (Parameter("values", "item"), Parameter("index", "int")), ("tensor",)),
    ]
    return {entry.name: entry for entry in table}


@cache
def operators() -> dict[str, Operator]:
    """Returns the table of allowed operators by full name, built once.

    Example:
        >>> table = operators()
        >>> [parameter.name for parameter in table["aten.linear.default"].parameters]
        ['input', 'weight', 'bias']
        >>> "aten.relu_.default" in table
        False
    """
    return _aten() | _symbolic()


def trim(operator: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Leaves out arguments that equal their defaults.

    Args:
        operator: whose arguments they are.
        args: positional arguments.
        kwargs: keyword arguments.

    Returns:
        Both, with trailing positional defaults and default keywords removed.
    """
    positional = operator.positional
    kept = list(args)
    while kept:
        parameter = positional[len(kept) - 1]
        if parameter.required or not same(kept[-1], parameter.default, parameter):
            break
        kept.pop()
    by_name = {parameter.name: parameter for parameter in operator.parameters}
    rest = {
        name: value
        for name, value in kwargs.items()
        if by_name[name].required or not same(value, by_name[name].default, by_name[name])
    }
    return tuple(kept), rest


def same(value: object, default: object, parameter: Parameter) -> bool:
    """Says whether an argument equals its default, a single number standing for a list of equal ones.

    Args:
        value: the argument.
        default: the schema's default.
        parameter: the schema's entry.

    Returns:
        True when leaving the argument out changes nothing.
    """
    if parameter.many and parameter.size and isinstance(value, tuple):
        full = default if isinstance(default, tuple) else (default,) * parameter.size
        return value == full and [type(item) for item in value] == [type(item) for item in full]
    return type(value) is type(default) and value == default
