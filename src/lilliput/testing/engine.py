"""Conformance of engines: what goes into each layer, and what comes out at the end, as the dense engine has it.

`small_networks` are the families that the exports are judged by, narrow enough for a test.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.recipe import Recipe
from lilliput.file.artifact import Artifact
from lilliput.graph.ir import Branch, NodeRef, Ref, refs_of
from lilliput.graph.layers import layer_of
from lilliput.nets.resnet import ResNet
from lilliput.nets.vgg import VGG
from lilliput.run.load import load
from lilliput.testing.network import built
from lilliput.train.compress import compress

INT8 = '[[rule]]\nsteps = [{method = "quantize/uniform", bits = 8}]\nactivations = "uniform:8"'
"""Weights of 8 bits, one scale a row; activations of 8 bits with a zero point."""

SYMMETRIC = INT8.replace(
    '"uniform:8"', '{method = "quantize/activations/uniform", form = "symmetric", solver = "kl_ncnn"}'
)
"""The same without zero points, ranges by ncnn's calibration."""


def every_input(artifact: Artifact) -> tuple[Artifact, tuple[str, ...]]:
    """Makes a network give what goes into each of its layers, besides what it gives.

    The inputs of layers, not their outputs: between a layer and the levels that its result goes on an engine may put
    things together, and nothing there is lost by looking at the levels.

    Args:
        artifact: with a graph.

    Returns:
        The artifact, whose output is a tuple, and a name for each of its tensors: of the layer's weight, or `"output"`.
    """
    graph = artifact.graph
    assert graph is not None
    seen: dict[Ref, str] = {}
    for node in graph.nodes:
        layer = layer_of(node)
        if layer is not None and isinstance(layer.source, NodeRef):
            seen.setdefault(layer.source, layer.weight)
    outputs = list(refs_of(graph.output))
    names = (*seen.values(), *("output" for _ in outputs))
    return replace(artifact, graph=replace(graph, output=Branch("tuple", (), (*seen, *outputs)))), names


def apart(artifact: Artifact, engine: Any, x: Tensor) -> list[tuple[str, float]]:
    """Compares an engine with the dense one, layer by layer.

    Args:
        artifact: with a graph of one input.
        engine: its name, or with settings.
        x: goes in.

    Returns:
        For each layer whose input is computed, and for the output: |got - wanted| / |wanted|, in the graph's order.
    """
    tapped, names = every_input(artifact)
    with torch.no_grad():
        found, wanted = load(tapped, engine=engine)(x), load(tapped, engine="dense")(x)
    assert [one.shape for one in found] == [two.shape for two in wanted]
    return [
        (name, float((one.double() - two.double()).norm() / two.double().norm().clamp(min=1e-30)))
        for name, one, two in zip(names, found, wanted, strict=True)
    ]


def compressed(name: str, recipe: str = "") -> tuple[Artifact, Tensor, Tensor]:
    """Compresses one of `small_networks`.

    Args:
        name: which.
        recipe: its text; none: weights and activations stay as they are.

    Returns:
        The artifact, four pictures that weren't calibrated on, and what the uncompressed network says of them.
    """
    model = small_networks()[name]()
    generator = torch.Generator().manual_seed(1)
    side = 64 if name == "resnet18" else 32
    data, x = (torch.randn(8, 3, side, side, generator=generator) for _ in range(2))
    with torch.no_grad():
        return compress(model, Recipe.loads(recipe), [data]), x[:4], model(x[:4])


def small_networks() -> dict[str, Any]:
    """Functions that build the networks by name, random weights; N x 3 x 32 x 32 (`resnet18`: 64 x 64) to N x 10."""
    return {
        "mobilenet_v2": partial(built, _Built(lambda: Inverted(3))),
        "resnet18": partial(built, ResNet(18, "imagenet", 0.125, num_classes=10, size=64)),
        "vgg": partial(built, VGG(11, "cifar", 0.125, num_classes=10, size=32)),
        "efficientnet_lite": partial(built, _Built(lambda: Inverted(5, margin=True))),
        "vit": partial(built, _Built(Transformer)),
    }


class _Built:
    """Something with a `build`, as networks have it."""

    def __init__(self, build: Any) -> None:
        self.build = build


class Inverted(nn.Module):
    """Inverted residuals (Sandler et al. 2018, arXiv 1801.04381), as MobileNetV2 and EfficientNet-Lite have them.

    Args:
        kernel: of the depthwise convolutions.
        margin: TensorFlow's padding, more on the right and below, by an operator of its own.
    """

    def __init__(self, kernel: int, margin: bool = False) -> None:
        super().__init__()
        self.margin = margin
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.blocks = nn.ModuleList(self._block(a, b, kernel, step) for a, b, step in ((8, 8, 1), (8, 12, 2)))
        self.last = nn.Sequential(nn.Conv2d(12, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.head = nn.Linear(32, 10)

    def _block(self, inputs: int, outputs: int, kernel: int, step: int) -> nn.Sequential:
        wide, pad = 4 * inputs, 0 if self.margin and step == 2 else kernel // 2
        return nn.Sequential(
            *(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *([nn.ZeroPad2d(((kernel - 2) // 2, kernel // 2) * 2)] if not pad else []),
            *(nn.Conv2d(wide, wide, kernel, step, pad, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 10."""
        x = self.first(x)
        for block in self.blocks:
            y = block(x)
            x = x + y if x.shape == y.shape else y
        result: Tensor = self.head(self.last(x).mean((2, 3)))
        return result


class Transformer(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) with a class token and three heads.

    Args:
        width: of a token.
        depth: number of blocks.
        patch: side of a patch; there are `patches` of them.
        patches: see `patch`.
        classes: that it tells apart.
    """

    def __init__(self, width: int = 24, depth: int = 2, patch: int = 8, patches: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, patches + 1, width))
        self.blocks = nn.ModuleList(_Attends(width, 3) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x classes."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(self.norm(x)[:, 0])
        return result


class _Attends(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        parts = self.qkv(self.before(x)).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(seen.transpose(1, 2).reshape(count, length, width))
        result: Tensor = x + self.back(functional.gelu(self.wide(self.between(x))))
        return result
