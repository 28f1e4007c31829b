"""Gradient pruning: only the largest gradients are propagated back, which makes training itself cheaper."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.checks import check_range
from lilliput.core.errors import ModelError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Gradient:
    """Keeps the k largest |dL/dy| of each layer's output for each example, and sets the others to zero (meProp).

    Sun et al. 2017 (arXiv 1706.06197): with y = W x and the sparse g', dL/dW = g' x^T and dL/dx = W^T g' come from
    k rows alone. The forward pass is unchanged. The last layer is left as it is, as in the paper.

    Attributes:
        part: k in parts of the outputs, 0 < part <= 1; one at least is kept.
        unified: one pattern for the whole batch, by the sum of |g| over it: the matrix product loses whole rows.

    >>> Gradient(part=0.5).sparsify(torch.tensor([[1.0, -3.0, 2.0, 0.5]]))
    tensor([[ 0., -3.,  2.,  0.]])
    """

    part: float = 0.1
    unified: bool = False

    def __post_init__(self) -> None:
        check_range("prune/gradient", "part", self.part, 1e-9, 1)

    def sparsify(self, gradient: Tensor) -> Tensor:
        """Returns the gradient with all but its largest entries zero.

        Args:
            gradient: (..., outputs), each row an example.
        """
        size = gradient.abs()
        if self.unified:
            size = size.reshape(-1, size.shape[-1]).sum(0).expand_as(size)
        count = max(round(self.part * gradient.shape[-1]), 1)
        kept = torch.zeros_like(gradient, dtype=torch.bool)
        kept.scatter_(-1, size.topk(min(count, gradient.shape[-1]), dim=-1).indices, True)
        return gradient.where(kept, torch.zeros_like(gradient))

    @contextmanager
    def on(self, model: nn.Module, match: str = "*") -> Iterator[list[str]]:
        """Prunes gradients of linear layers and convolutions for as long as the context lasts.

        Args:
            model: isn't changed otherwise.
            match: shell pattern for the layers' names; with the default the last layer is left out.

        Yields:
            The names of the layers.

        Raises:
            ModelError: if no layer fits.

        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> with Gradient(part=0.25).on(net) as names:
        ...     net(torch.ones(1, 4)).sum().backward()
        >>> names, int(net[0].weight.grad.any(1).sum()) <= 2
        (['0'], True)
        """
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LAYERS) and fnmatch.fnmatchcase(n, match)]
        if match == "*":
            layers = layers[:-1]
        if not layers:
            raise ModelError(f"no linear layer or convolution but the last fits '{match}'")
        handles = [layer.register_forward_hook(self._watch) for _, layer in layers]
        try:
            yield [name for name, _ in layers]
        finally:
            for handle in handles:
                handle.remove()

    def _watch(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        """Has the gradient of this output pruned when it comes."""
        if not output.requires_grad:
            return
        # All outputs that a convolution makes of one example are one row.
        inner = next((2 + place for place, kind in enumerate(LAYERS[1:]) if isinstance(layer, kind)), 1)
        rows = (*output.shape[: output.ndim - inner], -1)
        output.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: self.sparsify(gradient.reshape(rows)).reshape(gradient.shape)
        )
