"""The layers of a model before it is compressed: shape, share, and how its values are spread."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lilliput.core.layers import weights
from lilliput.report.distribution import Distribution, distribution


@dataclass(frozen=True)
class Original:
    """One parameter or buffer of a model, tied ones once.

    Attributes:
        name: in the state dict.
        kind: of its layer, such as `conv2d`; `vector`, `matrix` or `buffer`.
        shape: its axes.
        dtype: such as `float32`.
        parameters: how many numbers it holds.
        parameter_share: its part of all of them, 0 to 1.
        bytes: that it takes uncompressed.
        values: how they are spread, or None for integers and for what isn't finite.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    parameter_share: float
    bytes: int
    values: Distribution | None


def survey(model: nn.Module) -> list[Original]:
    """Lists the parameters and persistent buffers of a model.

    >>> [(layer.name, layer.parameter_share) for layer in survey(nn.Linear(3, 1))]
    [('weight', 0.75), ('bias', 0.25)]
    """
    kinds = {weight.name: weight.kind for weight in weights(model)}
    found = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    total = sum(tensor.numel() for _, tensor in found.values())
    return [
        Original(
            name=name,
            kind=kinds.get(name, "buffer"),
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            parameters=tensor.numel(),
            parameter_share=tensor.numel() / max(total, 1),
            bytes=tensor.numel() * tensor.element_size(),
            values=distribution(tensor),
        )
        for name, tensor in reversed(found.values())
    ]
