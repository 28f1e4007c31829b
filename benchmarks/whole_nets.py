"""Whole networks: what Lilliput compressed, in `native`, beside the uncompressed network in ONNX Runtime.

    python benchmarks/whole_nets.py [--only NAME ...] [--again]

One thread, a batch of one, random weights (norms as after some batches of training), random pictures. The compressed
network and the uncompressed one in ONNX Runtime take turns, fifteen rounds, three times; medians of CPU time and of
the three ratios. One or two minutes of one processor a network; each is kept under ~/.cache/lilliput/whole-nets
when it is done. Writes `benchmarks/results/whole_nets.json` and the table of `docs/benchmarks/whole-networks.md`.
"""

import argparse
import importlib
import json
import platform
import sys
from pathlib import Path

import torch
from torch import nn

import lilliput
from lilliput.quantize.xnor import block
from lilliput.run.clock import race
from lilliput.run.measure import reference

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "whole_nets.json"
PAGE = HERE.parent / "docs" / "benchmarks" / "whole-networks.md"
KEPT = Path.home() / ".cache" / "lilliput" / "whole-nets"
ROUNDS = 15

PICTURE, SMALL = (3, 224, 224), (3, 32, 32)


def steady(model, shape):
    """Lets the norms see some batches."""
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, *shape))
    return model.eval()


def sparse(pattern="unstructured", match=None, sparsity=0.9):
    """90 % zeros in the layers that a function of modules takes."""

    def recipe(model):
        names = [f"{name}.weight" for name, module in model.named_modules() if match(module)]
        step = f'{{method = "prune/magnitude", sparsity = {sparsity}, pattern = "{pattern}"}}'
        return lilliput.Recipe.loads("\n".join(f'[[rule]]\nmatch = "{name}"\nsteps = [{step}]' for name in names))

    return recipe


def text(words):
    """A recipe as it is written."""
    return lambda model: lilliput.Recipe.loads(words)


def pointwise(module):
    """1 x 1 convolutions."""
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


def not_first(module):
    """Convolutions of more than three channels."""
    return isinstance(module, nn.Conv2d) and module.in_channels > 3


XNOR = (
    '[[rule]]\nskip = "first and last"\nlayers = "conv2d"\nsteps = [{{method = "quantize/xnor"}}]\nactivations = "{}"'
)


class BinaryBlock(nn.Module):
    """Two of XNOR-Net's blocks, each with its own shortcut; the shortcut's 1 x 1 convolution is binary too."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = block(inputs, outputs, 3, stride=stride, padding=1)
        self.second = block(outputs, outputs, 3, padding=1)
        plain = stride == 1 and inputs == outputs
        self.short = nn.Identity() if plain else nn.Sequential(nn.AvgPool2d(stride), block(inputs, outputs, 1))

    def forward(self, x):
        """Adds each block to what goes in."""
        x = self.first(x) + self.short(x)
        return self.second(x) + x


def xnor_resnet18():
    """ResNet-18 in XNOR-Net's order, first and last layer in floats."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [BinaryBlock(inputs, outputs, stride), BinaryBlock(outputs, outputs, 1)]
        inputs = outputs
    ends = [nn.BatchNorm2d(512), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    return nn.Sequential(*layers, *ends)


def xnor_vgg():
    """VGG-small of CIFAR in XNOR-Net's order: 128, 128, 256, 256, 512, 512 channels, first and last layer in floats."""
    layers = [nn.Conv2d(3, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128), nn.ReLU()]
    inputs = 128
    for outputs, pool in ((128, 2), (256, 0), (256, 2), (512, 0), (512, 2)):
        layers.append(block(inputs, outputs, 3, padding=1, pool=pool))
        inputs = outputs
    return nn.Sequential(*layers, nn.BatchNorm2d(512), nn.ReLU(), nn.Flatten(), nn.Linear(512 * 16, 10))


def alexnet():
    """Caffe's AlexNet without its local norms, which have no counterpart in most engines."""
    relu, pool = nn.ReLU, lambda: nn.MaxPool2d(3, 2)
    return nn.Sequential(
        nn.Conv2d(3, 96, 11, 4), relu(), pool(), nn.Conv2d(96, 256, 5, padding=2, groups=2), relu(), pool(),
        nn.Conv2d(256, 384, 3, padding=1), relu(), nn.Conv2d(384, 384, 3, padding=1, groups=2), relu(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2), relu(), pool(), nn.Flatten(),
        nn.Linear(9216, 4096), relu(), nn.Linear(4096, 4096), relu(), nn.Linear(4096, 1000),
    )  # fmt: skip


def deep_compression(model):
    """The densities and bits of Deep Compression for AlexNet."""
    density = {"0": 0.84, "3": 0.38, "6": 0.35, "8": 0.37, "10": 0.37, "14": 0.09, "16": 0.09, "18": 0.25}
    rules = []
    for name, part in density.items():
        bits = 8 if int(name) < 14 else 5
        steps = f'{{method = "prune/magnitude", sparsity = {1 - part:.2f}}}, {{method = "share/kmeans", bits = {bits}}}'
        rules.append(f'[[rule]]\nmatch = "{name}.weight"\nsteps = [{steps}]')
    return lilliput.Recipe.loads("\n".join(rules))


def zoo(name, module):
    """A network of pytorchcv, random weights."""

    def make():
        # Not through its model_provider, which wants torchvision.
        return getattr(importlib.import_module(f"pytorchcv.models.{module}"), name)()

    return make


def demo():
    """The demo's CNN, trained."""
    sys.path.insert(0, str(HERE.parent / "examples"))
    from fashion_cnn import trained

    return trained()


TERNARY = '[[rule]]\nskip = "first and last"\nlayers = "conv2d"\nsteps = [{method = "quantize/ternary"}]'

# Each network: its maker, the shape of a picture, the recipe, and the speed that is wanted beside ONNX Runtime.
NETWORKS = {
    "MobileNetV2, 1 x 1 at 90 %": (zoo("mobilenetv2_w1", "mobilenetv2"), PICTURE, sparse(match=pointwise), 2.0),
    "MobileNetV2, 1 x 1 at 90 %, 4x1": (
        zoo("mobilenetv2_w1", "mobilenetv2"),
        PICTURE,
        sparse("block:4x1", pointwise),
        2.0,
    ),
    "ResNet-18 at 90 %": (zoo("resnet18", "resnet"), PICTURE, sparse(match=not_first), None),
    "ResNet-18 at 90 %, 4x1": (zoo("resnet18", "resnet"), PICTURE, sparse("block:4x1", not_first), None),
    "XNOR ResNet-18": (xnor_resnet18, PICTURE, text(XNOR.format("binary")), 5.0),
    "XNOR ResNet-18, with K": (xnor_resnet18, PICTURE, text(XNOR.format("binary:true")), 5.0),
    "XNOR VGG-small": (xnor_vgg, SMALL, text(XNOR.format("binary")), 5.0),
    "XNOR VGG-small, with K": (xnor_vgg, SMALL, text(XNOR.format("binary:true")), 5.0),
    "ternary ResNet-18": (zoo("resnet18", "resnet"), PICTURE, text(TERNARY), None),
    "demo, 4x1 at 90 %": (demo, (1, 28, 28), sparse("block:4x1", lambda m: isinstance(m, nn.Conv2d)), None),
    "demo, int8": (demo, (1, 28, 28), text('[[rule]]\nsteps = [{method = "quantize/uniform", bits = 8}]'), None),
    "AlexNet, Deep Compression": (alexnet, (3, 227, 227), deep_compression, None),
}


def measure(name):
    """One network: compressed, loaded, and timed in turns beside the uncompressed one."""
    make, shape, recipe, wanted = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    model = model.eval() if name.startswith("demo") else steady(model, shape)
    x = torch.randn(1, *shape)
    artifact = lilliput.compress(model, recipe(model), [torch.randn(2, *shape)])
    whole = reference(lilliput.compress(model, lilliput.Recipe(), example=x))
    net, dense = lilliput.load(artifact), lilliput.load(artifact, engine="dense")
    with torch.no_grad():
        calls = {"onnxruntime": lambda: whole(x), "native": lambda: net(x)}
        seconds = [race(calls, rounds=ROUNDS) for _ in range(3)]
        found, right = net(x), dense(x)
    ratios = sorted(one["onnxruntime"] / one["native"] for one in seconds)
    middle = next(one for one in seconds if one["onnxruntime"] / one["native"] == ratios[1])
    return {
        "network": name,
        "onnxruntime ms": round(1e3 * middle["onnxruntime"], 3),
        "native ms": round(1e3 * middle["native"], 3),
        "speed": round(ratios[1], 2),
        "speeds": [round(ratio, 2) for ratio in ratios],
        "wanted": wanted,
        "way": net.chosen.way,
        "apart": float(f"{float((found - right).norm() / right.norm()):.1e}"),
        "notes": list(net.chosen.notes),
    }


def write(rows):
    """The JSON and the page's table."""
    about = {"command": "python benchmarks/whole_nets.py", "torch": torch.__version__, "machine": platform.machine()}
    RESULTS.write_text(json.dumps({**about, "threads": 1, "rows": rows}, indent=1) + "\n")
    head, _, rest = PAGE.read_text().partition("| network |")
    remarks = "\n".join(line for line in rest.splitlines() if line.startswith(("* ", "  ")))
    lines = ["| network | ONNX Runtime, uncompressed, ms | `native`, ms | speed | wanted | in |", "| --- " * 6 + "|"]
    for row in rows:
        aim = "" if row["wanted"] is None else f"{row['wanted']:g} x"
        numbers = f"{row['onnxruntime ms']:.2f} | {row['native ms']:.2f} | {row['speed']:.2f} x"
        lines.append(f"| {row['network']} | {numbers} | {aim} | {row['way']} |")
    least = min(rows, key=lambda row: row["speed"])
    words = f"The slowest beside the uncompressed network in ONNX Runtime: {least['network']}, {least['speed']:.2f} x."
    PAGE.write_text(head + "\n".join(lines) + f"\n\n{words}\n\n{remarks}".rstrip() + "\n")


def main() -> None:
    """Measures what isn't kept yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(NETWORKS))
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        path = KEPT / f"{name.replace(' ', '_').replace('%', '').replace(',', '')}.json"
        if options.again or not path.exists():
            path.write_text(json.dumps(measure(name)))
        print(path.read_text(), flush=True)
    kept = {}
    for name in NETWORKS:
        path = KEPT / f"{name.replace(' ', '_').replace('%', '').replace(',', '')}.json"
        if path.exists():
            kept[name] = json.loads(path.read_text())
    write(list(kept.values()))


if __name__ == "__main__":
    main()
