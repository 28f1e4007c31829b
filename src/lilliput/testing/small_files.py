"""Small artifacts that together use most of what a file can hold: the corpus of hostile-file tests and fuzzing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from lilliput.core.cut import Cut
from lilliput.core.layers import weights
from lilliput.core.packed import Packed, pack_steps
from lilliput.core.recipe import Recipe
from lilliput.file.artifact import Artifact
from lilliput.graph.trace import trace

RECIPES: dict[str, list[dict[str, object]]] = {
    "shared": [{"method": "prune/magnitude", "sparsity": 0.8}, {"method": "share/kmeans", "bits": 3}],
    "uniform": [{"method": "quantize/uniform", "bits": 4}],
    "affine": [{"method": "quantize/uniform", "bits": 3, "symmetric": False, "per": "tensor", "cell_mean": True}],
    "sparse": [{"method": "prune/magnitude", "sparsity": 0.7}, {"method": "quantize/float16"}],
    "factors": [
        {"method": "factorize/svd", "rank": 2, "force": True},
        {"method": "quantize/uniform", "bits": 6, "per": "tensor"},
    ],
}


def artifact(name: str, *, graph: bool = True, seed: int = 0) -> Artifact:
    """Returns a small network, a convolution and two linear layers, compressed by one of `RECIPES`.

    Args:
        name: which recipe.
        graph: hold its graph as well.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 5)
        ).eval()
    recipe = Recipe.loads("[[rule]]\nsteps = [" + ", ".join(_toml(step) for step in RECIPES[name]) + "]")
    held: dict[str, Packed | torch.Tensor] = {}
    for weight in weights(model):
        rule = recipe.rule_for(weight)
        held[weight.name] = pack_steps(weight.parameter.detach(), rule.steps if rule else ())
    held |= dict(model.named_buffers())
    traced, constants = trace(model, torch.zeros(2, 1, 6, 6)) if graph else (None, {})
    return Artifact(held, recipe, traced, constants, facts={"original": 1234, "notes": {"a": None}})


def odd() -> Artifact:
    """Returns tensors of every dtype, empty, single and tied ones, a cut and a constant."""
    numbers = torch.Generator().manual_seed(1)
    held = {
        f"{code}.{size}": (torch.rand(size, 3, generator=numbers) * 9).to(dtype)
        for code, dtype in {
            "f64": torch.float64,
            "f32": torch.float32,
            "f16": torch.float16,
            "bf16": torch.bfloat16,
            "bool": torch.bool,
            "u8": torch.uint8,
            "i8": torch.int8,
            "i16": torch.int16,
            "i32": torch.int32,
            "i64": torch.int64,
        }.items()
        for size in (0, 5)
    }
    held |= {"single": torch.tensor(-0.0), "mask": torch.full((4,), -torch.inf), "again": held["f32.5"].clone()}
    cut = Cut("f32.5", 0, (0, 2, 3, 7, 8), 9)
    return Artifact(held, aliases={"tied": "f32.5"}, constants={"lifted": torch.arange(7)}, cuts=(cut,))


def artifacts() -> Iterator[tuple[str, Artifact]]:
    """Yields all of them with their names."""
    for name in RECIPES:
        yield name, artifact(name)
    yield "odd", odd()


def _toml(step: dict[str, object]) -> str:
    items = (f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in step.items())
    return "{" + ", ".join(items) + "}"
