"""8-bit exports in each engine beside what the engine's own quantizer makes of the same network.

    python benchmarks/exports.py [--networks mobilenet_v2 ...] [--engines onnxruntime ...] [--table]

Engines are found by name in `run/`: a new one joins by its file. MobileNetV2 and ResNet-18 (pytorchcv, random weights,
norms as after some batches), VGG-16's convolutions with a mean behind them, ViT-tiny (192 wide, 12 blocks, random),
EfficientNet-Lite0 with ImageNet weights; 224 x 224, a batch of one, one thread. Weights of 8 bits a row, activations
of 8 bits, ranges as wide as what 8 pictures gave, for our export as for the peers: `quantize_static` of onnxruntime,
and NNCF for OpenVINO (in an environment of its own, as for `ptq.py`). The packages of ncnn and MNN hold no quantizer of
activations. In each row floats, our export and the peer take turns: medians of processor time; only ratios mean much.
Cosines are means over 16 other pictures, to the float32 network in torch. Each row is kept in the cache, so that a run
goes on where it stopped: half a minute to two minutes of a processor a row. Writes `benchmarks/results/exports.json`.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import lilliput
from lilliput.core.errors import ModelError, NotInstalled
from lilliput.core.method import find, methods
from lilliput.run.clock import race
from lilliput.testing.engine import SYMMETRIC, Transformer
from ptq import nncf_python, recipe
from resumed import machine, place, result

RESULTS = Path(__file__).parent / "results" / "exports.json"


@dataclass(frozen=True)
class Settings:
    """What the figures depend on besides the row."""

    calibration: int = 8
    pictures: int = 16
    rounds: int = 9


def warmed(model: nn.Module) -> nn.Module:
    """Norms as after some batches of training."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(4, 3, 224, 224))
    return model.eval()


def mobilenet_v2() -> nn.Module:
    from pytorchcv.models.mobilenetv2 import mobilenetv2_w1

    return warmed(mobilenetv2_w1())


def resnet18() -> nn.Module:
    from pytorchcv.models.resnet import resnet18 as build

    return warmed(build())


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for count, wide in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        for _ in range(count):
            conv = nn.Conv2d(channels, wide, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight)
            layers += [conv, nn.ReLU()]
            channels = wide
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()


def vit_tiny() -> nn.Module:
    return Transformer(192, 12, 16, 196, 1000).eval()


def efficientnet_lite0() -> nn.Module:
    from real_models import efficientnet_lite0 as build

    return build()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    one.__name__: one for one in (mobilenet_v2, efficientnet_lite0, resnet18, vit_tiny, vgg16)
}
PLAIN = recipe(8, "minmax", "minmax")
RECIPES = {"ncnn": SYMMETRIC.replace(', solver = "kl_ncnn"', "")}
"""Of engines whose integers have no zero points; the others' results are on levels, too."""


def engines() -> list[str]:
    """Engines with a file format of their own that can run, by name."""
    names = [one.path.removeprefix("run/") for one in methods("run") if one.kind == "engine"]
    return [name for name in names if name != "c" and callable(getattr(find("run", name), "export", None))]


def built(name: str, settings: Settings) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, what is calibrated on and what is compared on."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    if name == "efficientnet_lite0":
        from real_data import crops

        return model, crops(settings.calibration, range(10), seed=1), crops(settings.pictures, range(10, 20), seed=3)
    generator = torch.Generator().manual_seed(1)
    counts = settings.calibration, settings.pictures
    first, second = (torch.randn(count, 3, 224, 224, generator=generator) for count in counts)
    return model, first, second


def quantize_static(source: Path, data: Tensor, target: Path) -> Callable[[Tensor], Tensor]:
    """ONNX Runtime's own."""
    from onnxruntime.quantization import QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    import ptq

    quantize(
        source,
        target,
        ptq.Reader(data, input_of(source)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return ptq.session(target)


def input_of(path: Path) -> str:
    import onnx

    return str(onnx.load(path).graph.input[0].name)


def nncf(source: Path, data: Tensor, target: Path) -> Callable[[Tensor], Tensor]:
    """NNCF's `quantize`, run by OpenVINO."""
    import subprocess

    import numpy
    import openvino

    pictures = target.with_suffix(".npy")
    numpy.save(pictures, data.numpy())
    script = Path(__file__).with_name("peer_nncf.py")
    subprocess.run([nncf_python(), script, source, pictures, target, "fast"], check=True, capture_output=True)
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = core.compile_model(core.read_model(target), "CPU", options).create_infer_request()
    return lambda x: torch.from_numpy(next(iter(request.infer([x.numpy()], share_inputs=True).values())).copy())


PEERS = {"onnxruntime": quantize_static, "openvino": nncf}


def artifact(name: str, text: str, settings: Settings) -> Any:
    """A compressed network, kept in the cache."""
    import hashlib

    path = place("exports", settings) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.safetensors"
    if not path.is_file():
        model, data, _ = built(name, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        lilliput.compress(model, lilliput.Recipe.loads(text), list(data.split(4))).save(path)
    from lilliput.file.read import read

    return read(path)


@torch.no_grad()
def cosine(call: Callable[[Tensor], Tensor], pictures: Tensor, wanted: Tensor) -> float:
    found = torch.cat([call(one) for one in pictures.split(1)])
    return float(functional.cosine_similarity(found.double(), wanted.double()).mean())


def measure(name: str, engine: str, settings: Settings) -> dict[str, Any]:
    """One network in one engine."""
    model, data, pictures = built(name, settings)
    with torch.no_grad():
        wanted = torch.cat([model(one) for one in pictures.split(4)])
    floats, ours = (artifact(name, text, settings) for text in ("", RECIPES.get(engine, PLAIN)))
    row: dict[str, Any] = {"network": name, "engine": engine}
    with tempfile.TemporaryDirectory() as folder:
        try:
            nets: dict[str, Any] = {"floats": lilliput.load(floats, engine=engine)}
            nets["ours"] = lilliput.load(ours, engine=engine)
        except ModelError as error:
            return row | {"refused": str(error)}
        if engine in PEERS:
            source = Path(folder) / "floats.onnx"
            floats.export(source)
            nets["peer"] = PEERS[engine](source, data, Path(folder) / "int8.onnx")
        x = pictures[:1]
        with torch.no_grad():
            seconds = race({key: lambda net=net: net(x) for key, net in nets.items()}, rounds=settings.rounds)
        row |= {f"{key} ms": 1e3 * value for key, value in seconds.items()}
        row["ours / floats"] = seconds["ours"] / seconds["floats"]
        if "peer" in seconds:
            row["ours / peer"] = seconds["ours"] / seconds["peer"]
        row |= {f"{key} cosine": cosine(net, pictures, wanted) for key, net in nets.items()}
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the documents."""
    lines = ["| network | engine | ours / floats | ours / peer | cosine: ours | peer |", "|---|---|---|---|---|---|"]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['network']} | {row['engine']} | refused: {row['refused']} | | | |")
            continue
        cells = [f"{row['ours / floats']:.2f}", f"{row['ours / peer']:.2f}" if "ours / peer" in row else ""]
        cells += [f"{row[key]:.4f}" if key in row else "" for key in ("ours cosine", "peer cosine")]
        lines.append(f"| {row['network']} | {row['engine']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures what isn't in the cache yet, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--engines", nargs="*", default=engines())
    parser.add_argument("--table", action="store_true", help="only print what is known, for the documents")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = Settings()
    home, rows = place("exports", settings), []
    for name in NETWORKS:
        for engine in engines():
            path = home / f"{name}-{engine}.json"
            if not options.table and name in options.networks and engine in options.engines:
                try:
                    result(path, lambda name=name, engine=engine: measure(name, engine, settings))
                except NotInstalled as error:
                    print(error)
            if path.is_file():
                rows.append(json.loads(path.read_text()))
                print(json.dumps(rows[-1]), flush=True)
        RESULTS.write_text(json.dumps({**machine(), "threads": 1, "rows": rows}, indent=1) + "\n")
    if options.table:
        print(markdown(rows))
        return
    names = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*names)
    for row in rows:
        cells = [row.get(key, "") for key in names]
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
