"""`Packed`: a compressed weight as plain data, and what can be done with one without knowing its method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.method import find_path

if TYPE_CHECKING:
    from lilliput.core.method import WeightMethod

Setting = bool | int | float | str

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
INTEGERS = frozenset({torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
"""Types that a part may have: those on which every operation of `unpack` is defined."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A compressed weight: named parts, from which its method makes the weight again.

    A part is a tensor (a leaf) or a `Packed` again (prune, then share the survivors; factorize, then quantize the
    factors). Integer leaves are entropy-coded by the file; float leaves stay as they are.

    Attributes:
        method: path of the weight method that can unpack it, such as `"quantize/uniform"`.
        shape: shape of the weight.
        dtype: floating-point type of the weight.
        parts: tensors or `Packed`, by name.
        settings: the few numbers and words that unpacking needs besides the parts.
    """

    method: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Mapping[str, Tensor | Packed]
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def tensor(self, part: str, *, shape: tuple[int, ...] | None = None, integer: bool | None = None) -> Tensor:
        """Returns a part that must be a tensor, checked; for use in `unpack`, where parts may come from a stranger.

        Args:
            part: its name.
            shape: the shape that it must have, or None for any.
            integer: whether its dtype must be an integer (or bool) or a floating-point one of 16 bits or more; None
                for either.

        Raises:
            MethodError: if the part is missing or other than asked for.
        """
        value = self.parts.get(part)
        if not isinstance(value, Tensor):
            raise MethodError(f"{self.method}: part '{part}' is missing; the packed weight is damaged")
        if shape is not None and tuple(value.shape) != shape:
            raise MethodError(f"{self.method}: part '{part}' has shape {tuple(value.shape)}, not {shape}")
        if value.dtype not in (FLOATS | INTEGERS if integer is None else INTEGERS if integer else FLOATS):
            raise MethodError(f"{self.method}: part '{part}' has dtype {value.dtype}")
        return value

    def with_parts(self, **parts: Tensor | Packed) -> Packed:
        """Returns the same packed weight with some parts replaced."""
        return replace(self, parts={**self.parts, **parts})


def unpack(packed: Packed | Tensor) -> Tensor:
    """Makes the weight again.

    Args:
        packed: a packed weight, or a tensor, which is returned as it is.

    Returns:
        A tensor of the packed weight's shape and dtype.

    Raises:
        MethodError: if the parts don't fit one another.

    >>> from lilliput.quantize.uniform import Uniform
    >>> unpack(Uniform(bits=2, per="tensor").pack(torch.tensor([[0.9, -1.0, 0.1]])))
    tensor([[ 1., -1.,  0.]])
    """
    if isinstance(packed, Tensor):
        return packed
    method = weight_method(packed.method)
    weight = method.unpack(replace(packed, parts={name: unpack(part) for name, part in packed.parts.items()}))
    if tuple(weight.shape) != packed.shape or weight.dtype != packed.dtype:
        raise MethodError(
            f"{packed.method} gave {weight.dtype} of shape {tuple(weight.shape)}, "
            f"where {packed.dtype} of shape {packed.shape} was packed"
        )
    return weight


def weight_method(path: str) -> type[WeightMethod]:
    """Returns the weight method, or constant, of this path; MethodError if there is none, or it is of another kind."""
    method: type[WeightMethod] = find_path(path)
    if not hasattr(method, "unpack"):
        raise MethodError(f"'{path}' is not a weight method: nothing can be unpacked with it")
    return method


def leaves(packed: Packed | Tensor, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields every tensor in a packed weight with its path, such as `"values.codes"`, in the order of the parts."""
    if isinstance(packed, Tensor):
        yield prefix, packed
        return
    for name, part in packed.parts.items():
        yield from leaves(part, f"{prefix}.{name}" if prefix else name)


def map_leaves(packed: Packed | Tensor, function: Callable[[Tensor], Tensor]) -> Packed | Tensor:
    """Returns the same tree with `function` applied to every tensor in it."""
    if isinstance(packed, Tensor):
        return function(packed)
    return replace(packed, parts={name: map_leaves(part, function) for name, part in packed.parts.items()})


def take(packed: Packed | Tensor, axis: int, kept: Tensor) -> Packed | Tensor:
    """Keeps some indices along one axis of a weight; the values that stay are exactly those that they were.

    Args:
        packed: a packed weight, or a tensor.
        axis: which one, counted from 0.
        kept: indices, int64, ascending.

    Raises:
        NotWorthwhile: if the weight's method can't be cut.
    """
    if isinstance(packed, Tensor):
        return packed.index_select(axis, kept)
    return weight_method(packed.method).take(packed, axis, kept)


def cut_shape(packed: Packed, axis: int, kept: Tensor) -> tuple[int, ...]:
    """Returns the shape of a packed weight after `take`."""
    return (*packed.shape[:axis], len(kept), *packed.shape[axis + 1 :])


def pack_steps(
    weight: Tensor,
    steps: tuple[WeightMethod, ...],
    stats: object = None,
    prior: Packed | Tensor | None = None,
) -> Packed | Tensor:
    """Packs a weight by the first step, the parts that it opens by the second, and so on.

    Args:
        weight: floating-point tensor of any shape.
        steps: weight methods in order; none leaves the weight as it is.
        stats: what calibration collected for this layer; passed on to parts of the weight's own shape.
        prior: the same weight packed before by the same steps (or the first few of them), whose state goes on.

    Returns:
        The packed weight, or the weight itself if there are no steps.

    Raises:
        MethodError: if a step can't take what it is given.
    """
    if not steps:
        return weight
    head, rest = steps[0], steps[1:]
    before = prior if isinstance(prior, Packed) and same_method(prior, head) else None
    return pack_rest(head, finished(head, head.pack(weight, stats, before)), rest, stats, before)


def pack_rest(
    head: WeightMethod,
    packed: Packed,
    rest: tuple[WeightMethod, ...],
    stats: object = None,
    before: Packed | None = None,
    lenient: bool = False,
) -> Packed:
    """Packs the parts that `head` opens to later steps; see `pack_steps`.

    Args:
        head: the step that packed the weight.
        packed: what it gave.
        rest: the later steps.
        stats: what calibration collected for this layer.
        before: the same weight packed before by the same steps.
        lenient: a part that a step finds not worthwhile stays as it is, in place of an error. So it is while training
            goes on, where a part is packed anew in each pass: its rank, say, may grow until factors hold more numbers
            than it has.
    """
    if not rest:
        return packed
    packed = opened(head, packed, rest[0])
    parts: dict[str, Tensor | Packed] = {}
    for name, part in packed.parts.items():
        if name in head.into and isinstance(part, Tensor):
            own = stats if tuple(part.shape) == packed.shape else None
            try:
                parts[name] = pack_steps(part, rest, own, before.parts.get(name) if before else None)
            except NotWorthwhile:
                if not lenient:
                    raise
                parts[name] = part
        else:
            parts[name] = part
    return replace(packed, parts=parts)


def opened(head: WeightMethod, packed: Packed, following: WeightMethod) -> Packed:
    """Returns `packed` as `following` should meet it: with zeros in their places if it keeps zeros."""
    return head.dense(packed) if following.keeps_zeros else packed


def finished(head: WeightMethod, packed: Packed) -> Packed:
    """Returns `packed` without the parts that only training needs."""
    if not head.scratch:
        return packed
    return replace(packed, parts={name: part for name, part in packed.parts.items() if name not in head.scratch})


def same_method(packed: Packed, method: WeightMethod) -> bool:
    """Whether `packed` is of the form that `method` packs to."""
    return find_path(packed.method).unpack is type(method).unpack
