"""The conformance suite of an algorithm of convolution: the definition is met, costs are told, refusals are clear."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.convolution.apply import convolve
from lilliput.hardware.layer import Layer
from lilliput.testing.spread import generator, settings_of, tried

LAYERS = (
    Layer(1, 1, size=(5, 5), kernel=(3, 3)),
    Layer(4, 6, size=(9, 8), kernel=(3, 3), padding=(1, 1), groups=2, batch=2),
    Layer(3, 5, size=(11, 12), kernel=(5, 5), stride=(2, 2), padding=(2, 2), batch=2),
    Layer(4, 4, size=(10, 7), kernel=(3, 3), padding=(2, 2), dilation=(2, 2), groups=4),
    Layer(2, 3, size=(6, 6), batch=3),
    Layer(2, 3, size=(9, 9), kernel=(2, 2), stride=(3, 3), padding=(1, 1)),
    Layer(2, 3, size=(7, 18), kernel=(3, 3), padding=(1, 1)),
    Layer(2, 4, size=(4, 5), kernel=(3, 2), stride=(5, 1), padding=(3, 0), groups=2, batch=2),
    Layer(3, 2, size=(8, 13), kernel=(1, 4), dilation=(1, 3)),
    Layer(2, 2, size=(13, 12), kernel=(7, 7), padding=(3, 3)),
)
"""Small layers of every sort: odd sizes, groups, strides beyond the kernel, dilations, kernels that aren't square."""


def numbers(layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x, weight and bias for a layer, the same each time."""
    x = torch.randn(layer.batch, layer.channels, *layer.size, generator=generator(1), dtype=torch.float64)
    shape = layer.filters, layer.channels // layer.groups, *layer.kernel
    weight = torch.randn(*shape, generator=generator(2), dtype=torch.float64)
    bias = torch.randn(layer.filters, generator=generator(3), dtype=torch.float64)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


def cases(cls: Any) -> Iterator[tuple[Any, Layer]]:
    """Yields every setting with every layer that it can compute."""
    for algorithm in {*settings_of(cls), cls()}:
        suited = [layer for layer in LAYERS if algorithm.unsuited(layer) is None]
        assert suited, f"{algorithm} can compute none of the layers"
        for layer in suited:
            yield algorithm, layer


def _right(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
    return functional.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def meets_the_definition(cls: Any) -> None:
    """The result is torch's, to 1e-10 of its largest number in float64 and to 1e-4 in float32; inputs don't change."""
    for algorithm, layer in cases(cls):
        for dtype, most in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
            x, weight, bias = numbers(layer, dtype)
            before = x.clone(), weight.clone(), bias.clone()
            found = algorithm.run(x, algorithm.prepare(weight, layer), layer, bias)
            right = _right(before[0].double(), before[1].double(), before[2].double(), layer)
            what = f"{algorithm} on {layer} in {dtype}"
            assert found.shape == right.shape, f"{what}: {tuple(found.shape)}, not {tuple(right.shape)}"
            assert found.dtype == dtype, f"{what}: the result is {found.dtype}"
            assert found.is_contiguous(), f"{what}: the result is a view"
            far = float((found - right).abs().max() / right.abs().max())
            assert far <= most, f"{what}: {far:.2g} of the largest number away"
            assert all(map(torch.equal, (x, weight, bias), before)), f"{what}: an input was changed"


def shifts_by_an_impulse(cls: Any) -> None:
    """A kernel with a single 1 gives the input, moved; zeros give zeros."""
    for algorithm, layer in cases(cls):
        if layer.groups != 1:
            continue
        x, weight, _ = numbers(layer, torch.float64)
        weight.zero_()
        prepared = algorithm.prepare(weight, layer)
        assert not algorithm.run(x, prepared, layer).any(), f"{algorithm} on {layer}: zeros give something else"
        weight[:, 0, -1, -1] = 1
        found = algorithm.run(x, algorithm.prepare(weight, layer), layer)
        right = _right(x, weight, None, layer)
        assert torch.allclose(found, right, atol=1e-10), f"{algorithm} on {layer}: an impulse doesn't move the input"


def tells_what_it_costs(cls: Any) -> None:
    """Counts and bytes are whole numbers, grow with the batch, and prepared weights are as large as is said."""
    for algorithm, layer in cases(cls):
        for dtype in (torch.float64, torch.float32):
            _, weight, _ = numbers(layer, dtype)
            cost = algorithm.cost(layer, weight.element_size())
            what = f"{algorithm} on {layer}"
            values = cost.multiplications, cost.additions, cost.workspace, cost.prepared
            assert all(isinstance(value, int) for value in values), f"{what}: {cost}"
            assert min(values) >= 0, f"{what}: {cost}"
            assert cost.multiplications > 0, f"{what}: no multiplications"
            held = algorithm.prepare(weight, layer)
            size = held.numel() * held.element_size()
            assert size == cost.prepared, f"{what}: prepared weights take {size} bytes, not {cost.prepared}"
            twice = algorithm.cost(_of_batch(layer, 2 * layer.batch), weight.element_size())
            assert twice.multiplications == 2 * cost.multiplications, f"{what}: twice the batch, other products"
            assert twice.workspace >= cost.workspace, f"{what}: twice the batch, less workspace"


def gives_the_right_gradients(cls: Any) -> None:
    """Gradients are torch's where the algorithm has some; otherwise wanting them is refused in one line."""
    for algorithm, layer in cases(cls):
        held = [value.requires_grad_() for value in numbers(layer, torch.float64)]
        x, weight, bias = held
        if not hasattr(algorithm, "gradients"):
            refused = tried(partial(convolve, x, weight, layer, algorithm, bias), f"{algorithm}") is None
            assert refused, f"{algorithm} has no gradients and doesn't say so"
            continue
        found, right = convolve(x, weight, layer, algorithm, bias), _right(x, weight, bias, layer)
        slope = torch.randn(right.shape, generator=generator(4), dtype=torch.float64)
        own, others = (torch.autograd.grad(y, held, slope) for y in (found, right))
        for name, one, two in zip(("x", "weight", "bias"), own, others):
            far = float((one - two).abs().max())
            assert one.shape == two.shape, f"{algorithm} on {layer}: the gradient of {name} is {tuple(one.shape)}"
            assert far <= 1e-10 * max(1.0, float(two.abs().max())), f"{algorithm} on {layer}: {name} is {far:.2g} off"


def refuses_clearly(cls: Any) -> None:
    """What it can't compute is told in one line, by `unsuited` and by `convolve`."""
    for algorithm in {*settings_of(cls), cls()}:
        for layer in LAYERS:
            reason = algorithm.unsuited(layer)
            if reason is None:
                continue
            assert reason, f"{algorithm} on {layer}: refused without a word"
            assert "\n" not in reason, f"{algorithm} on {layer}: a refusal of several lines"
            x, weight, _ = numbers(layer, torch.float32)
            refused = tried(partial(convolve, x, weight, layer, algorithm), f"{algorithm}") is None
            assert refused, f"{algorithm} on {layer}: not refused, although: {reason}"


def _of_batch(layer: Layer, batch: int) -> Layer:
    sizes = layer.size, layer.kernel, layer.stride, layer.padding, layer.dilation
    return Layer(layer.channels, layer.filters, *sizes, layer.groups, batch)


LAWS = (
    meets_the_definition,
    shifts_by_an_impulse,
    tells_what_it_costs,
    gives_the_right_gradients,
    refuses_clearly,
)


def check(cls: Any) -> None:
    """Runs all laws on the class of an algorithm.

    Raises:
        AssertionError: names the setting, the layer and what is wrong.

    >>> from lilliput.convolution.im2col import Im2col
    >>> check(Im2col)
    """
    for law in LAWS:
        law(cls)
