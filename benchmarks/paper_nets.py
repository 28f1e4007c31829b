"""Caffe's AlexNet and VGG-16 as tables of layer shapes, with the densities and bits of the Deep Compression paper.

    python benchmarks/paper_nets.py alexnet   # compresses it with drawn weights; prints size, time and memory as JSON

Han, Mao and Dally 2016 (arXiv 1510.00149) and Han et al. 2015 (1506.02626). Trained weights of these two can't be
had from a package registry: `synthetic` draws them, and every figure from them says so.
"""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lilliput
from lilliput.core.packed import Packed
from lilliput.core.recipe import Recipe, Rule
from lilliput.file import write
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.float16 import Float16
from lilliput.share.kmeans import KMeans
from paper_coding import codes_of, paper_coding

CONV_BITS, FC_BITS = 8, 5


@dataclass(frozen=True)
class Layer:
    """One layer of a table.

    Attributes:
        name: As in the papers.
        shape: Of the weight: (out, in / groups, height, width) or (out, in).
        density: Part of the weights that the papers keep.
        groups: Of a convolution.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    groups: int = 1

    @property
    def numel(self) -> int:
        """Number of weights, biases not counted."""
        return int(torch.Size(self.shape).numel())

    @property
    def bits(self) -> int:
        """Bits of a shared value's number in the paper: 8 for convolutions, 5 for fully connected layers."""
        return CONV_BITS if len(self.shape) == 4 else FC_BITS

    def module(self) -> nn.Module:
        """Makes the layer; its weights are whatever was in memory."""
        out, inputs, *kernel = self.shape
        made: nn.Module
        if kernel:
            size = (kernel[0], kernel[1])
            made = nn.Conv2d(inputs * self.groups, out, size, groups=self.groups, device="meta")
        else:
            made = nn.Linear(inputs, out, device="meta")
        return made.to_empty(device="cpu")


@dataclass(frozen=True)
class PaperNet:
    """A network of the paper.

    Attributes:
        layers: Its layers that have weights.
        parameters: How many it has, biases included.
        megabytes: Size in the paper, in 10^6 bytes: before and after.
    """

    layers: tuple[Layer, ...]
    parameters: int
    megabytes: tuple[float, float]


PAPER_NETS = {
    "alexnet": PaperNet(
        (
            Layer("conv1", (96, 3, 11, 11), 0.84),
            Layer("conv2", (256, 48, 5, 5), 0.38, groups=2),
            Layer("conv3", (384, 256, 3, 3), 0.35),
            Layer("conv4", (384, 192, 3, 3), 0.37, groups=2),
            Layer("conv5", (256, 192, 3, 3), 0.37, groups=2),
            Layer("fc6", (4096, 9216), 0.09),
            Layer("fc7", (4096, 4096), 0.09),
            Layer("fc8", (1000, 4096), 0.25),
        ),
        60_965_224,
        (240, 6.9),
    ),
    "vgg16": PaperNet(
        (
            Layer("conv1_1", (64, 3, 3, 3), 0.58),
            Layer("conv1_2", (64, 64, 3, 3), 0.22),
            Layer("conv2_1", (128, 64, 3, 3), 0.34),
            Layer("conv2_2", (128, 128, 3, 3), 0.36),
            Layer("conv3_1", (256, 128, 3, 3), 0.53),
            Layer("conv3_2", (256, 256, 3, 3), 0.24),
            Layer("conv3_3", (256, 256, 3, 3), 0.42),
            Layer("conv4_1", (512, 256, 3, 3), 0.32),
            Layer("conv4_2", (512, 512, 3, 3), 0.27),
            Layer("conv4_3", (512, 512, 3, 3), 0.34),
            Layer("conv5_1", (512, 512, 3, 3), 0.35),
            Layer("conv5_2", (512, 512, 3, 3), 0.29),
            Layer("conv5_3", (512, 512, 3, 3), 0.36),
            Layer("fc6", (4096, 25088), 0.04),
            Layer("fc7", (4096, 4096), 0.04),
            Layer("fc8", (1000, 4096), 0.23),
        ),
        138_357_544,
        (552, 11.3),
    ),
}


def synthetic(net: PaperNet, seed: int = 0) -> nn.Module:
    """Makes a network with drawn weights: all of a layer independent, Laplacian of variance 1 / inputs; biases 0.1.

    Nothing of a trained network's structure is in them: no row or column is denser than another. The network is a
    list of layers and can't be run.

    Args:
        net: Which.
        seed: Decides the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    model = nn.ModuleDict({layer.name: layer.module() for layer in net.layers})
    with torch.no_grad():
        for layer in net.layers:
            weight, bias = (getattr(model[layer.name], name) for name in ("weight", "bias"))
            inputs = layer.numel // layer.shape[0]
            for row in weight:  # one row at a time: the measured peak of memory must not be that of the drawing
                size = torch.empty_like(row).exponential_(generator=generator)
                sign = torch.randint(0, 2, row.shape, generator=generator).mul_(2).sub_(1)
                row.copy_(size.mul_(sign).mul_((0.5 / inputs) ** 0.5))
            bias.fill_(0.1)
    return model


def recipe(net: PaperNet) -> Recipe:
    """Returns the recipe of the paper: its density and bits for each layer, 16-bit floats for values and biases.

    One of the 2^bits numbers of a layer means zero, as in the format that the paper's authors released.
    """
    rules = [
        Rule(f"{layer.name}.weight", (Magnitude(sparsity=1 - layer.density), KMeans(k=2**layer.bits - 1), Float16()))
        for layer in net.layers
    ]
    return Recipe((*rules, Rule(layers="vector", steps=(Float16(),))), "deep-compression")


def measure(name: str) -> dict[str, Any]:
    """Compresses a network with drawn weights, saves it and reads it again.

    Memory is the largest resident set of this process, less what it had before the network was made, in parts of the
    float32 network: the network itself counts as 1. A small network goes through everything first, so that code and
    tables that stay are not counted. Call it in a process of its own.

    Args:
        name: "alexnet" or "vgg16".

    Returns:
        What the JSON holds.
    """
    net = PAPER_NETS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        warm = PaperNet((Layer("conv", (8, 4, 3, 3), 0.5), Layer("fc", (600, 500), 0.1)), 0, (0, 0))
        lilliput.compress(synthetic(warm), recipe(warm)).save(path)
        lilliput.load(path, into=synthetic(warm))
        before = resident("VmRSS")
        model = synthetic(net)
        parameters = sum(p.numel() for p in model.parameters())
        fp32 = 4 * parameters
        if parameters != net.parameters:
            raise RuntimeError(f"{name} has {parameters} parameters, not {net.parameters}")
        peaks, seconds = {}, {}
        start = time.process_time()
        artifact = lilliput.compress(model, recipe(net))
        seconds["compress"] = time.process_time() - start
        peaks["compress"] = (resident("VmHWM") - before) / fp32
        start = time.process_time()
        size = artifact.save(path)
        seconds["save"] = time.process_time() - start
        peaks["compress and save"] = (resident("VmHWM") - before) / fp32
        start = time.process_time()
        loaded = lilliput.load(path, into=model)
        seconds["load"] = time.process_time() - start
    for key, value in artifact.state_dict().items():
        if not torch.equal(loaded.state_dict()[key], value):
            raise RuntimeError(f"{name}: {key} came back changed")
    return {
        "weights": "synthetic: independent Laplacian in each layer",
        "parameters": parameters,
        "fp32_bytes": fp32,
        "file_bytes": size,
        "ratio": round(fp32 / size, 1),
        "papers_megabytes": net.megabytes,
        "peak_memory_in_fp32_networks": {key: round(value, 2) for key, value in peaks.items()},
        "cpu_seconds": {key: round(value, 2) for key, value in seconds.items()},
        **codings(artifact, net),
    }


def codings(artifact: lilliput.Artifact, net: PaperNet) -> dict[str, Any]:
    """Counts the paper's coding beside ours, layer by layer."""
    coded = write.sizes(artifact)["coded"]
    layers = {}
    for layer in net.layers:
        packed = artifact.weights[f"{layer.name}.weight"]
        assert isinstance(packed, Packed)
        row = paper_coding(*codes_of(packed))
        row["coded_bytes"] = sum(coded[f"{layer.name}.weight"].values())
        row["bits_per_kept_weight"] = round(8 * row["coded_bytes"] / row["kept"], 2)
        layers[layer.name] = {"weights": layer.numel, **row}
    biases = 2 * sum(layer.shape[0] for layer in net.layers)
    return {
        "papers_coding_bytes": sum(row["huffman_bytes"] for row in layers.values()) + 2 * biases,
        "papers_fixed_width_bytes": sum(row["fixed_bytes"] for row in layers.values()) + 2 * biases,
        "entropy_bytes": round(sum(row["entropy_bytes"] for row in layers.values())),
        "coded_bytes": sum(row["coded_bytes"] for row in layers.values()),
        "layers": layers,
    }


def resident(what: str) -> int:
    """Returns this process's resident memory in bytes: `VmRSS` now, `VmHWM` the most so far (Linux)."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(what))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1])))
