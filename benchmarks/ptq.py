"""Post-training quantization of EfficientNet-Lite0 beside onnxruntime's `quantize_static` and NNCF, in one run.

    python benchmarks/ptq.py [--crops 500] [--only NAME ...]

Weights and activations, ImageNet weights. Calibrated on 128 crops of ten of the 20 labelled pictures, scored on
crops of the other ten, then the halves are swapped; the figures are means over both. Divergence is the mean KL of the
float32 network's probabilities from the quantized network's, in nats. Peers get the float32 network as our ONNX file,
BatchNorm folded. NNCF has an environment of its own in the cache, which the first run makes (0.4 GB). Each case is kept
in the cache, so that a run goes on where it stopped; all of them take about an hour of one core.
Writes `benchmarks/results/ptq.json` and the table of `docs/benchmarks/post-training.md`.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import lilliput
from real_data import cache_directory, crops, imagenet_pictures
from real_models import efficientnet_lite0
from resumed import machine, place, result

RESULTS = Path(__file__).parent / "results" / "ptq.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks" / "post-training.md"
HALVES = (range(10), range(10, 20))
NNCF = ("nncf==3.4.0", "onnx==1.21.0", "onnxruntime==1.32.0")


@dataclass(frozen=True)
class Settings:
    """What the figures depend on besides the case."""

    calibration: int = 128
    crops: int = 500


@dataclass(frozen=True)
class Half:
    """One way round: what is calibrated on, what is scored, and what float32 says of it."""

    calibration: Tensor
    pictures: Tensor
    reference: Tensor
    whole: Tensor
    labels: Tensor


def recipe(bits: int, weights: str, solver: str, head: str = "") -> str:
    """A recipe's text: all layers' weights, inputs and results in as many bits, by these solvers."""
    activations = f'{{method = "quantize/activations/uniform", bits = {bits}, solver = "{solver}"}}'
    return f"""{head}
[[rule]]
steps = [{{method = "quantize/uniform", bits = {bits}, solver = "{weights}"}}]
activations = {activations}
outputs = {activations}
"""


def cases() -> dict[str, str]:
    """Ours by name: the recipe's text. The most telling first."""
    found = {f"{bits} bits, mse+gptq, mse": recipe(bits, "mse+gptq", "mse") for bits in (8, 6, 4)}
    found |= {f"8 bits, {way}, {way}": recipe(8, way, way) for way in ("minmax", "mse")}
    found["8 bits, mse+gptq, minmax"] = recipe(8, "mse+gptq", "minmax")
    for way in ("percentile:99.99", "kl", "aciq", "kl_ncnn"):
        found[f"8 bits, mse, {way}"] = recipe(8, "mse", way)
    for way in ("hqq", "percentile:99.99", "aciq", "easy"):
        found[f"8 bits, {way}, mse"] = recipe(8, way, "mse")
    # Passes over the whole network; and where equalization is said to be needed: one scale for all of a weight.
    for name in ("bias_correction", "equalize", "smooth"):
        found[f"8 bits, {name}, mse+gptq, mse"] = recipe(8, "mse+gptq", "mse", f'passes = ["{name}"]')
    found["4 bits, bias_correction, mse+gptq, mse"] = recipe(4, "mse+gptq", "mse", 'passes = ["bias_correction"]')
    one = recipe(8, "mse", "mse").replace('"quantize/uniform", bits', '"quantize/uniform", per = "tensor", bits')
    found["8 bits, a scale a tensor, mse, mse"] = one
    found["8 bits, equalize, a scale a tensor, mse, mse"] = 'passes = ["equalize"]\n' + one
    both = 'passes = ["equalize", "bias_correction"]\n' + one
    found["8 bits, equalize, bias_correction, a scale a tensor, mse, mse"] = both
    return found


def halves(settings: Settings) -> list[Half]:
    """Both ways round."""
    model = efficientnet_lite0()
    images, labels = imagenet_pictures()
    found = []
    for number, (own, other) in enumerate((HALVES, HALVES[::-1])):
        calibration = crops(settings.calibration, own, seed=1 + number)
        pictures = crops(settings.crops, other, seed=3 + number)
        path, rest = place("ptq", settings) / f"reference-{number}.npy", slice(other.start, other.stop)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            numpy.save(path, logits(model, pictures).numpy())
        found.append(Half(calibration, pictures, torch.from_numpy(numpy.load(path)), images[rest], labels[rest]))
    return found


@torch.no_grad()
def logits(model: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """A network's scores, 20 pictures at a time."""
    return torch.cat([model(batch) for batch in pictures.split(20)])


def scores(model: Callable[[Tensor], Tensor], half: Half) -> dict[str, float]:
    """How near a network's logits are to float32's, and what it says of the labelled pictures."""
    found, wanted = logits(model, half.pictures), half.reference
    own, other = functional.log_softmax(wanted.double(), 1), functional.log_softmax(found.double(), 1)
    top = logits(model, half.whole).topk(5).indices
    return {
        "cosine": float(functional.cosine_similarity(found, wanted).mean()),
        "divergence": float((own.exp() * (own - other)).sum(1).mean()),
        "agreement %": 100 * float((found.argmax(1) == wanted.argmax(1)).float().mean()),
        "top-1": int((top[:, 0] == half.labels).sum()),
        "top-5": int((top == half.labels[:, None]).any(1).sum()),
    }


def ours(text: str, half: Half) -> dict[str, float]:
    """Compresses, writes, loads without the class, scores."""
    model = efficientnet_lite0()
    started, wall = time.process_time(), time.perf_counter()
    artifact = lilliput.compress(model, lilliput.Recipe.loads(text), list(half.calibration.split(16)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        size = artifact.save(path)
        spent, waited = time.process_time() - started, time.perf_counter() - wall
        return {"bytes": size, "CPU s": spent, "s": waited, **scores(lilliput.load(path), half)}


def float32(folder: Path) -> Path:
    """The network as an ONNX file, BatchNorm folded."""
    path = folder / "float32.onnx"
    example = torch.zeros(1, 3, 224, 224)
    lilliput.compress(efficientnet_lite0(), lilliput.Recipe(()), example=example).export(path)
    return path


def session(path: Path) -> Callable[[Tensor], Tensor]:
    """A network in ONNX Runtime, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = made.get_inputs()[0].name
    return lambda pictures: torch.from_numpy(made.run(None, {name: pictures.numpy()})[0])


class Reader:
    """Calibration data as onnxruntime's quantizer reads them: one picture at a time.

    Args:
        pictures: all of them.
        name: of the network's input.
    """

    def __init__(self, pictures: Tensor, name: str) -> None:
        self.rest, self.name = iter(pictures.split(1)), name

    def get_next(self) -> dict[str, numpy.ndarray] | None:
        """The next picture by the input's name; None after the last."""
        batch = next(self.rest, None)
        return None if batch is None else {self.name: batch.numpy()}


def by_onnxruntime(method: str, half: Half) -> dict[str, float]:
    """`quantize_static`, per channel: unsigned activations, signed weights."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        source, target = float32(Path(folder)), Path(folder) / "int8.onnx"
        started, wall = time.process_time(), time.perf_counter()
        quantize_static(
            source,
            target,
            Reader(half.calibration, "inputs"),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, method),
        )
        spent, waited = time.process_time() - started, time.perf_counter() - wall
        return {"bytes": target.stat().st_size, "CPU s": spent, "s": waited, **scores(session(target), half)}


def nncf_python() -> Path:
    """The interpreter of NNCF's environment, which is made if it isn't there."""
    home = cache_directory() / "nncf-venv"
    python = home / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NNCF], check=True)
    return python


def by_nncf(way: str, half: Half) -> dict[str, float]:
    """NNCF's `quantize` with its defaults, or with full bias correction."""
    with tempfile.TemporaryDirectory() as folder:
        source, pictures, target = float32(Path(folder)), Path(folder) / "pictures.npy", Path(folder) / "int8.onnx"
        numpy.save(pictures, half.calibration.numpy())
        wall = time.perf_counter()
        script = Path(__file__).with_name("peer_nncf.py")
        subprocess.run([nncf_python(), script, source, pictures, target, way], check=True, capture_output=True)
        return {"bytes": target.stat().st_size, "s": time.perf_counter() - wall, **scores(session(target), half)}


PEERS: dict[str, Callable[[Half], dict[str, float]]] = {
    "onnxruntime, minmax": lambda half: by_onnxruntime("MinMax", half),
    "NNCF": lambda half: by_nncf("fast", half),
    "NNCF, full bias correction": lambda half: by_nncf("full", half),
    "onnxruntime, entropy": lambda half: by_onnxruntime("Entropy", half),
    "onnxruntime, percentile": lambda half: by_onnxruntime("Percentile", half),
}


def cached(name: str, key: str, home: Path) -> dict | None:
    """What the cache knows of a case: the mean over the halves that are done, the sum of labelled pictures."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    paths = [path for number in range(2) if (path := home / f"{digest}-{number}.json").is_file()]
    found = [json.loads(path.read_text()) for path in paths]
    if not found:
        return None
    sums = {"top-1", "top-5"}
    means = {k: sum(f[k] for f in found) / (1 if k in sums else len(found)) for k in found[0]}
    each = [f["divergence"] for f in found]
    return {"case": name, "halves": len(found), **means, "divergence of each half": each}


def measure(name: str, way: Callable[[Half], dict[str, float]], key: str, both: list[Half], home: Path) -> str | None:
    """Measures both halves of a case, unless the cache has them; returns why it failed."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    try:
        for number, half in enumerate(both):
            result(home / f"{digest}-{number}.json", lambda half=half: way(half))
    except (ImportError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", b"") or b""
        return f"{error} {detail.decode()[-200:]}"
    return None


def lines(rows: list[dict]) -> list[str]:
    """The table in Markdown, the smallest divergence first, peers beside ours."""
    found = [
        "| weights' solver, activations' solver | file, bytes | divergence | of each half | cosine | agreement "
        "| top-1, top-5 | crops | packing, CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted((row for row in rows if "divergence" in row), key=lambda row: row["divergence"]):
        peer = row["case"] in PEERS
        each = ", ".join(f"{part:.4f}" for part in row["divergence of each half"])
        spent = f"{row['CPU s']:.0f}" if "CPU s" in row else ""
        found.append(
            f"| {'' if peer else 'Lilliput, '}{row['case']} | {row['bytes']:,.0f} | {row['divergence']:.4f} | {each} "
            f"| {row['cosine']:.4f} | {row['agreement %']:.1f} % | {row['top-1']:.0f}, {row['top-5']:.0f} of "
            f"{10 * row['halves']} | {Settings().crops * row['halves']:,} | {spent} |"
        )
    return found


def write_page(rows: list[dict]) -> None:
    """Puts the table where the page has it."""
    page = DOCUMENT.read_text().splitlines()
    table = [number for number, line in enumerate(page) if line.startswith("|")]
    DOCUMENT.write_text("\n".join([*page[: table[0]], *lines(rows), *page[table[-1] + 1 :]]) + "\n")


def main() -> None:
    """Measures the cases, prints the table of all that are done, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=500, help="scored each way round")
    parser.add_argument("--only", nargs="*", help="cases, by the beginning of their names; none: what the cache has")
    options = parser.parse_args()
    settings = Settings(crops=options.crops)
    home = place("ptq", settings)
    jobs = [(name, way, name) for name, way in PEERS.items()]
    jobs += [(name, lambda half, text=text: ours(text, half), text) for name, text in cases().items()]
    chosen = [job for job in jobs if options.only is None or any(job[0].startswith(word) for word in options.only)]
    both = halves(settings) if chosen else []
    failed = {name: why for name, way, key in chosen if (why := measure(name, way, key, both, home))}
    rows = [row for name, _, key in jobs if (row := cached(name, key, home)) is not None]
    rows += [{"case": name, "failed": why} for name, why in failed.items()]
    names = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*names, title="EfficientNet-Lite0")
    for row in rows:
        cells = [row.get(name, "") for name in names]
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console(width=200).print(table)
    RESULTS.write_text(json.dumps({**machine(), "crops a half": options.crops, "rows": rows}, indent=1) + "\n")
    if settings == Settings():
        write_page(rows)


if __name__ == "__main__":
    main()
