"""Every algorithm of convolution on the layers of AlexNet, VGG-16, ResNet-18 and MobileNet, beside other engines.

    python benchmarks/convolution.py       # about five minutes; writes results/ and docs/benchmarks/convolution.md

One thread, one picture of float32, what is prepared once (transformed weights) not counted. All candidates of a layer
run in turn, seven rounds; CPU time of the thread, medians. Peers: torch's own (oneDNN), ncnn (`pip install ncnn`, fp32,
with its own choice of algorithm), NNPACK as torch has it (where it takes the layer), and im2col by torch with NumPy's
OpenBLAS. Those that aren't there are left out. `error` is |difference from float64| over the largest result, inputs and
weights from U(-1, 1). Results are kept a layer at a time under ~/.cache/lilliput/convolution-benchmark, so that a
run that was stopped goes on; --again forgets them, the name of a network measures that one alone.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.convolution.contract import Algorithm
from lilliput.convolution.error import error
from lilliput.convolution.fft import Fft
from lilliput.convolution.im2col import Im2col
from lilliput.convolution.mec import Mec
from lilliput.convolution.strassen import Strassen
from lilliput.convolution.winograd import Winograd
from lilliput.core.kernel import variant
from lilliput.core.method import find
from lilliput.hardware.layer import Layer

HERE = Path(__file__).parent
RESULT, PAGE = HERE / "results" / "convolution.json", HERE.parent / "docs" / "benchmarks" / "convolution.md"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lilliput" / "convolution-benchmark"
ROUNDS, SLOW = 7, 8.0
NETS = {"VGG-16": ("vgg", {}), "AlexNet": ("alexnet", {}), "ResNet-18": ("resnet", {}), "MobileNet": ("mobilenet", {})}
ALGORITHMS: dict[str, Algorithm] = {
    "im2col": Im2col(),
    "MEC": Mec("B"),
    "F(2,3)": Winograd(2),
    "F(4,3)": Winograd(4),
    "F(6,3)": Winograd(6),
    "FFT": Fft(),
    "FFT 16": Fft(16),
    "FFT 32": Fft(32),
    "Strassen": Strassen(1),
}
PEERS = ("torch", "ncnn", "NNPACK", "OpenBLAS")
NAMES = ("VGG-16", "11 x 11", "AlexNet", "ResNet-18", "MobileNet")
LARGE = [
    Layer(64, 64, size=(56, 56), kernel=(11, 11), padding=(5, 5), name="11x11, 64 channels, 56"),
    Layer(128, 128, size=(28, 28), kernel=(11, 11), padding=(5, 5), name="11x11, 128 channels, 28"),
    Layer(16, 16, size=(112, 112), kernel=(11, 11), padding=(5, 5), name="11x11, 16 channels, 112"),
    Layer(3, 64, size=(112, 112), kernel=(11, 11), padding=(5, 5), name="11x11, 3 channels, 112"),
]


def layers_of(name: str) -> list[Layer]:
    """The convolutions of a network, each sort once, in order."""
    family, settings = NETS[name]
    net = find("nets", family)(**settings)
    found: list[Layer] = []

    def seen(module: nn.Conv2d, given: tuple[Tensor, ...], _: Tensor) -> None:
        size, padding = tuple(given[0].shape[2:]), module.padding
        layer = Layer(module.in_channels, module.out_channels, size, module.kernel_size, module.stride,
                      padding, module.dilation, module.groups, name=name)  # fmt: skip
        if layer not in found:
            found.append(layer)

    with torch.no_grad():
        model = net.build().eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(seen)
        model(torch.zeros(1, net.channels, net.size, net.size))
    return found


def with_ncnn(layer: Layer, weight: Tensor, bias: Tensor, x: Tensor) -> Callable[[], Any] | None:
    """The layer as a network of ncnn."""
    try:
        import ncnn
    except ImportError:
        return None
    kind = "Convolution" if layer.groups == 1 else "ConvolutionDepthWise"
    numbers = {0: layer.filters, 1: layer.kernel[1], 11: layer.kernel[0], 3: layer.stride[1], 13: layer.stride[0],
               4: layer.padding[1], 14: layer.padding[0], 5: 1, 6: weight.numel()}  # fmt: skip
    numbers |= {7: layer.groups} if layer.groups > 1 else {}
    text = f"7767517\n2 2\nInput in 0 1 in\n{kind} conv 1 1 in out " + " ".join(f"{k}={v}" for k, v in numbers.items())
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.param").write_text(text + "\n")
        held = bytes(4) + weight.numpy().tobytes() + bias.numpy().tobytes()
        (Path(folder) / "net.bin").write_bytes(held)
        net.load_param(f"{folder}/net.param")
        net.load_model(f"{folder}/net.bin")
    given = ncnn.Mat(x[0].numpy())

    def call() -> Tensor:
        extractor = net.create_extractor()
        extractor.input("in", given)
        _, out = extractor.extract("out")
        call.net = net  # type: ignore[attr-defined]
        return out

    return call


def with_openblas(layer: Layer, weight: Tensor, x: Tensor) -> Callable[[], Any] | None:
    """Columns by torch, the product by NumPy."""
    if layer.groups > 1:
        return None
    matrix = weight.flatten(1).numpy()

    def call() -> np.ndarray:
        columns = functional.unfold(x, layer.kernel, layer.dilation, layer.padding, layer.stride)[0]
        return matrix @ columns.numpy()

    return call


def calls_of(layer: Layer) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, layer.channels, *layer.size, generator=generator) * 2 - 1
    weight = torch.rand(layer.filters, layer.channels // layer.groups, *layer.kernel, generator=generator) * 2 - 1
    bias = torch.zeros(layer.filters)
    shape = layer.stride, layer.padding
    calls: dict[str, Callable[[], Any] | None] = {
        "torch": lambda: functional.conv2d(x, weight, bias, *shape, layer.dilation, layer.groups),
        "ncnn": with_ncnn(layer, weight, bias, x),
        "OpenBLAS": with_openblas(layer, weight, x),
    }
    if layer.groups == 1 and torch._nnpack_available() and layer.stride == (1, 1) and layer.kernel != (1, 1):
        calls["NNPACK"] = lambda: torch._nnpack_spatial_convolution(x, weight, bias, layer.padding, layer.stride)
    for name, algorithm in ALGORITHMS.items():
        cost = None if algorithm.unsuited(layer) else algorithm.cost(layer)
        # Depthwise layers have nothing to share, and spectra of many kernels don't fit.
        if cost is None or (layer.groups > 1 and name not in ("im2col", "MEC")) or cost.prepared > 1 << 29:
            continue
        held = algorithm.prepare(weight, layer)
        calls[name] = lambda a=algorithm, h=held: a.run(x, h, layer, bias)  # type: ignore[misc]
    return {name: call for name, call in calls.items() if call is not None and works(call, layer)}


def works(call: Callable[[], Any], layer: Layer) -> bool:
    """Whether a peer takes the layer at all."""
    try:
        found = call()
    except (RuntimeError, ValueError):
        return False
    numbers = np.asarray(found).size
    return numbers == layer.outputs


def measured(layer: Layer) -> dict[str, Any]:
    """Milliseconds, workspace and error of all that can compute a layer."""
    calls = calls_of(layer)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        best = min((min(seconds) for seconds in times.values() if seconds), default=1e9)
        for name, call in calls.items():
            # What is far behind after the first rounds is timed no more.
            if turn > 2 and min(times[name]) > SLOW * best:
                continue
            begun = time.thread_time()
            call()
            spent = time.thread_time() - begun
            if turn:
                times[name].append(spent)
    rows = {name: {"ms": 1e3 * statistics.median(seconds)} for name, seconds in times.items()}
    for name in calls.keys() & ALGORITHMS.keys():
        cost = ALGORITHMS[name].cost(layer)
        rows[name] |= {"workspace": cost.workspace, "prepared": cost.prepared}
        rows[name] |= {"multiplications": cost.multiplications, "error": error(ALGORITHMS[name], layer).largest}
    return {"layer": asdict(layer), "rows": rows}


def vgg16(classifier: bool) -> nn.Module:
    """VGG-16 with its three fully connected layers, or with a mean and one layer of 1,000 classes."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    taken = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(taken, width, 3, padding=1), nn.ReLU()]
            taken = width
        layers.append(nn.MaxPool2d(2))
    if classifier:
        end = [nn.Flatten(), nn.Linear(25088, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
        return nn.Sequential(*layers, *end, nn.Linear(4096, 1000)).eval()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)).eval()


def whole(classifier: bool) -> dict[str, float]:
    """Milliseconds of VGG-16 as a network, uncompressed float32; with its classifier it takes 3 GB of memory."""
    import lilliput
    from lilliput.run.native import Native

    model, x = vgg16(classifier), torch.randn(1, 3, 224, 224)
    artifact = lilliput.compress(model, lilliput.Recipe(), example=x)
    nets: dict[str, Callable[[], Any]] = {"torch": lambda: model(x)}
    for name, engine in (("onnxruntime", "onnxruntime"), ("native", Native())):
        loaded = lilliput.load(artifact, engine=engine)
        nets[name] = lambda net=loaded: net(x)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in nets}
    with torch.no_grad():
        for turn in range(ROUNDS + 1):
            for name, call in nets.items():
                begun = time.process_time()
                call()
                spent = time.process_time() - begun
                times[name] += [spent] if turn else []
    return {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}


def described(layer: dict[str, Any]) -> str:
    """A layer in a few words, such as 128 -> 256, 56 x 56, 3 x 3."""
    text = f"{layer['channels']} → {layer['filters']}, {layer['size'][0]}², {layer['kernel'][0]}×{layer['kernel'][1]}"
    text += f", stride {layer['stride'][0]}" if layer["stride"][0] > 1 else ""
    return text + (f", {layer['groups']} groups" if layer["groups"] > 1 else "")


def table(entries: list[dict[str, Any]]) -> list[str]:
    """Milliseconds, a line for each layer, the least in bold."""
    names = [n for n in (*PEERS, *ALGORITHMS) if any(n in entry["rows"] for entry in entries)]
    lines = ["| layer | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for entry in entries:
        least = min(row["ms"] for row in entry["rows"].values())
        cells = []
        for name in names:
            row = entry["rows"].get(name)
            text = "" if row is None else f"{row['ms']:.2f}"
            cells.append(f"**{text}**" if row is not None and row["ms"] == least else text)
        lines.append(f"| {described(entry['layer'])} | " + " | ".join(cells) + " |")
    return lines


def held(entries: list[dict[str, Any]]) -> list[str]:
    """Workspaces in MB, and errors."""
    names = [n for n in ALGORITHMS if any(n in entry["rows"] for entry in entries)]
    lines = ["| layer | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for entry in entries:
        rows = [entry["rows"].get(name) for name in names]
        cells = ["" if row is None else f"{row['workspace'] / 1e6:.2f}; {row['error']:.0e}" for row in rows]
        lines.append(f"| {described(entry['layer'])} | " + " | ".join(cells) + " |")
    return lines


def targets(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What the figures say of the aims."""
    deep = [e["rows"] for e in results["VGG-16"] if min(e["layer"]["channels"], e["layer"]["filters"]) >= 128]
    early = [e["rows"] for e in results["VGG-16"] if e["layer"]["size"][0] >= 112]
    found: dict[str, Any] = {
        "F(4,3) over torch, VGG-16 from 128 channels on": [r["torch"]["ms"] / r["F(4,3)"]["ms"] for r in deep],
        "MEC's workspace, im2col's over it, VGG-16 from 112 up": [
            r["im2col"]["workspace"] / r["MEC"]["workspace"] for r in early
        ],
        "MEC's time over im2col's": [r["MEC"]["ms"] / r["im2col"]["ms"] for r in early],
    }
    for peer in ("im2col", "torch", "NNPACK"):
        name = "FFT in tiles, the better one, over " + peer + ", 11 x 11"
        rows = [entry["rows"] for entry in results["11 x 11"] if peer in entry["rows"]]
        found[name] = [r[peer]["ms"] / min(r[n]["ms"] for n in ("FFT 16", "FFT 32") if n in r) for r in rows]
    if all("ncnn" in row for row in deep):
        found["F(4,3) over ncnn, the same"] = [r["ncnn"]["ms"] / r["F(4,3)"]["ms"] for r in deep]
    return found


def of_the_whole(nets: dict[str, dict[str, float]]) -> list[str]:
    """The section on VGG-16 as a network."""
    lines = [
        "## VGG-16 as a network",
        "",
        "Uncompressed float32, milliseconds. The three fully connected layers read 494 MB of weights, which memory",
        "limits in any engine; without them there are a mean and one layer of 1,000 classes.",
        "",
        "| | torch | onnxruntime | native | native over onnxruntime |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, net in nets.items():
        times = " | ".join(f"{net[engine]:.0f}" for engine in ("torch", "onnxruntime", "native"))
        lines.append(f"| {name} | {times} | {net['onnxruntime'] / net['native']:.2f} |")
    return [*lines, ""]


def page(results: dict[str, list[dict[str, Any]]], aims: dict[str, Any], nets: dict[str, dict[str, float]]) -> str:
    """The page of the documentation."""
    lines = [
        "# Algorithms of convolution: `python benchmarks/convolution.py`",
        "",
        "Milliseconds of CPU time of one thread for one picture, float32, medians of seven interleaved rounds; weights",
        "are prepared beforehand. torch is oneDNN; OpenBLAS is NumPy's, under torch's `unfold`; blank: not for this",
        "layer. FFT (of the whole input) and Strassen are torch code; FFT 16 and FFT 32 (in tiles of so many pixels",
        "down and across), im2col, MEC and Winograd are compiled.",
        "",
    ]
    before = [name for name, entries in results.items() if not any("FFT 16" in entry["rows"] for entry in entries)]
    if before:
        lines[-1:] = [f"{' and '.join(before)} were measured before FFT in tiles was compiled.", ""]
    for name, entries in results.items():
        lines += [f"## {name}", "", *table(entries), ""]
    lines += ["## Ratios", ""]
    for name, values in aims.items():
        lines.append(f"* {name}: " + ", ".join(f"{value:.2f}" for value in values))
    lines += ["", *of_the_whole(nets), "## Workspace in MB and error", ""]
    lines += ["The error is the largest difference from float64 over the largest result.", ""]
    for name, entries in results.items():
        lines += [f"### {name}", "", *held(entries), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Measures all layers that aren't measured yet, and writes figures and page."""
    torch.set_num_threads(1)
    CACHE.mkdir(parents=True, exist_ok=True)
    if "--again" in sys.argv:
        for file in CACHE.glob("*.json"):
            file.unlink()
    results: dict[str, list[dict[str, Any]]] = {}
    named = [word for word in sys.argv[1:] if word in NAMES]
    for name in named or NAMES:
        for number, layer in enumerate(LARGE if name == "11 x 11" else layers_of(name)):
            file = CACHE / f"{name.replace(' ', '')}-{number}.json"
            if not file.exists():
                file.write_text(json.dumps(measured(layer)))
            entry = json.loads(file.read_text())
            results.setdefault(name, []).append(entry)
            print(name, described(entry["layer"]), {k: round(v["ms"], 2) for k, v in entry["rows"].items()}, flush=True)
    if named:
        return
    nets = {}
    for classifier, name in ((False, "without the fully connected layers"), (True, "whole")):
        file = CACHE / f"VGG-16-{'whole' if classifier else 'convolutions'}.json"
        if not file.exists():
            file.write_text(json.dumps(whole(classifier)))
        nets[name] = json.loads(file.read_text())
        print("VGG-16", name, nets[name], flush=True)
    aims = targets(results)
    print(json.dumps(aims, indent=1))
    told = {"torch": torch.__version__, "variant": variant(), "targets": aims, "VGG-16": nets, "layers": results}
    RESULT.write_text(json.dumps(told, indent=1) + "\n")
    PAGE.write_text(page(results, aims, nets))


if __name__ == "__main__":
    main()
