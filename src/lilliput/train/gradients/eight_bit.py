"""Gradients in 8 bits of the dynamic tree, whose precision goes to the values near the largest."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lilliput.solve import dynamic_tree
from lilliput.train.gradients.exchange import Gradients, averaged
from lilliput.train.gradients.state import GradBucket, GradientHook, HookState


@dataclass(frozen=True)
class EightBit(GradientHook):
    """g -> s tree(g / s), s the largest |g| of the parameter in any process, tree the nearest of 255 values.

    Dettmers 2016 (arXiv 1511.04561); `solve.dynamic_tree` has the table, of which magnitudes from 1 down to 10^-6
    are values, the larger ones the finer. Both ways of the exchange take one byte a value. `train.pipeline` sends
    activations and errors the same way, between processes that hold parts of one model.

    Attributes:
        feedback: add what was not sent to the next gradient: rounding to the nearest isn't right in the mean.
    """

    feedback: bool = True

    def hook(self, state: HookState, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        """Exchanges one bucket; see `GradientHook`."""
        found = Gradients.of(state, bucket, self.feedback)
        scale = found.spread(found.largest(state))
        result, lost = averaged(state, found.flat, _Tree(scale))
        if self.feedback:
            found.keep(state, lost)
        return found.finish(state, bucket, result)


@dataclass
class _Tree:
    """The tree with a scale for each element."""

    scale: Tensor

    def encode(self, values: Tensor, begin: int) -> Tensor:
        """Returns one byte a value."""
        scale = self.scale[begin : begin + len(values)]
        return dynamic_tree.encode(values / torch.where(scale > 0, scale, 1))

    def decode(self, data: Tensor, begin: int, count: int) -> Tensor:
        """Returns the values; NaN where the scale is infinite."""
        return dynamic_tree.decode(data) * self.scale[begin : begin + count]
