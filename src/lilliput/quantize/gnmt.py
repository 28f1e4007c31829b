"""GNMT's quantization of LSTMs: 8-bit rows, a clipped cell of 16 bits whose bound is annealed, clipped logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import ModelError
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed
from lilliput.quantize.uniform import Uniform

NAME = "quantize/gnmt"
TOP = 2**15 - 1
"""Highest code of 16 bits."""


@dataclass(frozen=True)
class Gnmt(WeightMethod):
    """Each row of a weight: round(w / s * 127) with s = max|w|, 8 bits; half to even, straight-through gradient.

    Wu et al. 2016 (arXiv 1609.08144, section 6). What the rest of the layer needs is `ClippedLSTM`, in an `nn.LSTM`'s
    place, and `clipped` for the logits.

    >>> packed = Gnmt().pack(torch.tensor([[0.5, -0.25], [0.1, 0.0]]))
    >>> packed.parts["codes"].tolist()
    [[127, -64], [127, 0]]
    """

    keeps_zeros = True
    searched = False

    def pack(self, weight: Tensor, stats: object = None, prior: Packed | None = None) -> Packed:
        """Packs to the form of `quantize/uniform`: 8 bits, symmetric, one scale a row.

        Raises:
            MethodError: if a weight isn't finite.
        """
        return Uniform(bits=8, per="row").pack(weight)

    unpack = staticmethod(Uniform.unpack)
    take = staticmethod(Uniform.take)

    @classmethod
    def choices(cls) -> tuple[WeightMethod, ...]:
        """The one setting that packs."""
        return (cls(),)


class Sixteen(torch.autograd.Function):
    """clip(x, -bound, bound) in 16 bits: round(x / bound * (2^15 - 1)) bound / (2^15 - 1); the clipping's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        """Returns x on its 65535 levels.

        Args:
            ctx: of autograd.
            x: any shape.
            bound: largest magnitude.
        """
        ctx.save_for_backward(x.abs() <= bound)
        return levels(x, bound)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Passes the gradient where x isn't clipped."""
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None


def levels(x: Tensor, bound: float) -> Tensor:
    """Returns x clipped to -bound .. bound and rounded to 16 bits; see `Sixteen`.

    >>> levels(torch.tensor([0.5, -3.0]), 1.0)
    tensor([ 0.5000, -1.0000])
    """
    return torch.round(torch.clamp(x, -bound, bound) / bound * TOP) / TOP * bound


def sixteen(x: Tensor, bound: float) -> Tensor:
    """Returns `levels(x, bound)`, with the gradient of the clipping."""
    if not torch.is_grad_enabled():
        return levels(x, bound)
    found: Tensor = Sixteen.apply(x, bound)  # type: ignore[no-untyped-call]
    return found


def clipped(logits: Tensor, bound: float = 25.0) -> Tensor:
    """Returns logits clipped to -bound .. bound, as GNMT does before the softmax, in training too.

    >>> clipped(torch.tensor([30.0, -1.0]))
    tensor([25., -1.])
    """
    return torch.clamp(logits, -bound, bound)


class ClippedLSTM(nn.LSTM):
    """An LSTM whose cells are clipped to -bound .. bound and held in 16 bits, as are gates and outputs.

    c' = clip(f c + i g), h = o tanh(c'), where c' is round(c' / bound * (2^15 - 1)) in 16 bits, and gates, tanh and h
    the same with a bound of 1 (Wu et al. 2016, arXiv 1609.08144, section 6). Parameters have the names of `nn.LSTM`'s,
    so that a trained one's `state_dict` fits. `lilliput.advance` (and so `fit`) anneals the bound from 8 to its end.

    Traced, the steps are unrolled: the file's graph takes sequences of the example's length, while
    `load(path, into=model)` takes any.

    Args:
        input_size: as for `nn.LSTM`.
        hidden_size: the same.
        num_layers: the same.
        bias: the same.
        batch_first: the same.
        start: bound at the start of training.
        end: bound at its end, and until training begins.

    Raises:
        ModelError: bounds that aren't positive.

    >>> out, (h, c) = ClippedLSTM(3, 5)(torch.randn(4, 2, 3))
    >>> out.shape, bool((c.abs() <= 1).all())
    (torch.Size([4, 2, 5]), True)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        start: float = 8.0,
        end: float = 1.0,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first)
        if not 0 < end <= start < float("inf"):
            raise ModelError(f"ClippedLSTM: bounds must fall from start = {start} to end = {end}, both positive")
        self.start, self.end, self.bound = start, end, end

    def anneal(self, progress: float) -> None:
        """Sets the bound for this point of the training, 0 to 1, on a line from `start` to `end`."""
        self.bound = self.start + (self.end - self.start) * progress

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> Any:  # type: ignore[override]
        """Runs all steps of all layers.

        Args:
            input: (steps, batch, inputs), or (batch, steps, inputs) if `batch_first`; (steps, inputs) without a batch.
            hx: (h, c) to begin with, each (layers, batch, units); zeros if not given.

        Returns:
            Outputs in the form of the input, and (h, c).

        Raises:
            ModelError: an input of another form.
        """
        if not isinstance(input, Tensor) or input.ndim not in {2, 3}:
            raise ModelError("ClippedLSTM: takes a tensor of 2 or 3 axes, no packed sequence")
        single = input.ndim == 2
        x = input.unsqueeze(1) if single else input.transpose(0, 1) if self.batch_first else input
        shape = (self.num_layers, x.shape[1], self.hidden_size)
        state = (x.new_zeros(shape), x.new_zeros(shape)) if hx is None else hx
        first, second = (part.unsqueeze(1) if single and hx is not None else part for part in state)
        last = []
        for layer in range(self.num_layers):
            x, h, c = self._layer(x, first[layer], second[layer], layer)
            last.append((h, c))
        h, c = (torch.stack(list(parts)) for parts in zip(*last))
        if single:
            return x.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return (x.transpose(0, 1) if self.batch_first else x), (h, c)

    def _layer(self, x: Tensor, h: Tensor, c: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        own = [getattr(self, f"{name}_l{layer}", None) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        into, again, bias, more = own
        assert into is not None
        assert again is not None
        fed = nn.functional.linear(x, into, bias)
        outputs = []
        for step in fed.unbind(0):
            gates = step + nn.functional.linear(h, again, more)
            i, f, g, o = gates.chunk(4, -1)
            i, f, o = (sixteen(torch.sigmoid(gate), 1.0) for gate in (i, f, o))
            c = sixteen(f * c + i * sixteen(torch.tanh(g), 1.0), self.bound)
            h = sixteen(o * sixteen(torch.tanh(c), 1.0), 1.0)
            outputs.append(h)
        return torch.stack(outputs), h, c
