"""Our LiteRT files beside those of LiteRT's own quantizer, ai-edge-quantizer: latency, size and nearness to float32.

    pip install ai-edge-quantizer
    python benchmarks/litert.py [--only resnet18 ...]

Both get the same 16 pictures to calibrate on, and the peer gets our float file, so that only the quantization differs.
One thread, a batch of one, CPU time, taking turns, medians. EfficientNet-Lite0 has its ImageNet weights and pictures;
the others have pytorchcv's architectures with random weights (norms as after some batches of training) and random
pictures, so that only latency and the cosine of their logits mean anything. A minute or two of one processor a
network; results are kept a network at a time. Writes `benchmarks/results/litert.json`.
"""

import argparse
import importlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import lilliput
from lilliput.run.clock import race
from resumed import machine, place, result

RESULTS = Path(__file__).parent / "results" / "litert.json"
RECIPE = """[[rule]]
steps = [{method = "quantize/uniform", bits = 8, solver = "mse"}]
activations = "uniform:8"
outputs = "uniform:8"
"""


@dataclass(frozen=True)
class Settings:
    """What the figures depend on besides the network."""

    calibration: int = 16
    pictures: int = 16
    recipe: str = RECIPE


def of_pytorchcv(file, name):
    """A network with random weights, pictures to calibrate on, and others."""
    torch.manual_seed(0)
    # Its list of all networks needs torchvision.
    model = getattr(importlib.import_module(f"pytorchcv.models.{file}"), name)()
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 224, 224))
    return model.eval(), torch.randn(16, 3, 224, 224), torch.randn(16, 3, 224, 224)


def efficientnet_lite0():
    """EfficientNet-Lite0, crops of the first ten labelled pictures, and crops of the others."""
    from real_data import crops
    from real_models import efficientnet_lite0 as build

    return build(), crops(16, range(10), seed=1), crops(16, range(10, 20), seed=2)


NETWORKS = {
    "efficientnet_lite0": efficientnet_lite0,
    "mobilenet_v2": lambda: of_pytorchcv("mobilenetv2", "mobilenetv2_w1"),
    "resnet18": lambda: of_pytorchcv("resnet", "resnet18"),
}


def by_peer(path, pictures):
    """The file of ai-edge-quantizer: static, 8 bits, its defaults."""
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(str(path))
    made.load_quantization_recipe(recipe.static_wi8_ai8())
    from ai_edge_litert.interpreter import Interpreter

    net = Interpreter(str(path))
    signature, runner = next(iter(net.get_signature_list().items()), (None, None))
    data = {signature: [{name: x[None].numpy() for name in (runner or {"inputs": ["x"]})["inputs"]} for x in pictures]}
    return bytes(made.quantize(made.calibrate(data)).quantized_model)


def of_peer(data):
    """Runs the peer's file, whose input and output are codes."""
    from ai_edge_litert.interpreter import Interpreter

    net = Interpreter(model_content=data, num_threads=1)
    net.allocate_tensors()
    (given,), (wanted,) = net.get_input_details(), net.get_output_details()

    def run(x):
        array = x.numpy()
        if given["dtype"] is numpy.int8:
            scale, zero = given["quantization"]
            array = numpy.clip(numpy.round(array / scale) + zero, -128, 127).astype(numpy.int8)
        net.set_tensor(given["index"], array)
        net.invoke()
        found = torch.from_numpy(net.get_tensor(wanted["index"])).float()
        scale, zero = wanted["quantization"]
        return (found - zero) * scale if scale else found

    return run


def measured(name):
    """Everything about one network."""
    from lilliput.run.litert import LitertModule

    model, calibration, pictures = NETWORKS[name]()
    with torch.no_grad():
        wanted = model(pictures)
    floats = lilliput.compress(model, lilliput.Recipe(), example=calibration[:1])
    ours = lilliput.compress(model, lilliput.Recipe.loads(RECIPE), list(calibration.split(8)))
    with tempfile.TemporaryDirectory() as folder:
        paths = {key: Path(folder) / f"{key}.tflite" for key in ("float32", "ours", "peer")}
        floats.export(paths["float32"], engine="litert")
        ours.export(paths["ours"], engine="litert")
        paths["peer"].write_bytes(by_peer(paths["float32"], calibration))
        nets = {key: LitertModule(floats.graph, paths[key].read_bytes()) for key in ("float32", "ours")}
        nets |= {"peer": of_peer(paths["peer"].read_bytes())}
        sizes = {key: path.stat().st_size for key, path in paths.items()}
    nets |= {"onnxruntime int8": lilliput.load(ours, engine="onnxruntime")}
    x = pictures[:1]
    with torch.no_grad():
        cosines = {
            key: float(functional.cosine_similarity(torch.cat([net(one[None]) for one in pictures]), wanted).mean())
            for key, net in nets.items()
        }
        seconds = race({key: lambda net=net: net(x) for key, net in nets.items()}, seconds=10.0)
    return {"milliseconds": {k: 1e3 * s for k, s in seconds.items()}, "cosine": cosines, "bytes": sizes}


def main():
    """Measures, writes the JSON, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    names = parser.parse_args().only
    torch.set_num_threads(1)
    numpy.random.seed(0)
    folder = place("litert", Settings())
    found = {name: result(folder / f"{name}.json", lambda name=name: measured(name)) for name in names}
    RESULTS.write_text(json.dumps({"machine": machine(), "networks": found}, indent=1) + "\n")
    table = Table("network", "file", "ms", "over the peer", "cosine", "MB")
    for name, row in found.items():
        for key, value in row["milliseconds"].items():
            ratio, size = value / row["milliseconds"]["peer"], row["bytes"].get(key)
            cells = f"{value:.2f}", f"{ratio:.2f}", f"{row['cosine'][key]:.5f}", f"{size / 1e6:.2f}" if size else ""
            table.add_row(name, key, *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
