"""Deep Compression on the networks of its paper: whole-file size, error, and what each stage and each start gives.

    python benchmarks/deep_compression.py                # about 40 minutes on one core; what is finished is kept
    python benchmarks/deep_compression.py lenet-300-100  # some of it: lenet-300-100, lenet-5, alexnet, vgg16

LeNet-300-100 and Caffe's LeNet-5 on MNIST, three seeds: pruned while training on, shared, fine-tuned, coded; the file
is loaded without the model's class and that is scored on the test pictures. Settings were chosen on the validation
split. Then the three starts of k-means in the paper beside the optimum, before and after fine-tuning. AlexNet and
VGG-16 have drawn weights (no trained ones can be had here) at the paper's densities and bits: bytes, time and memory
only. Writes results/deep_compression.json and docs/benchmarks/deep-compression.md. Paper: Han, Mao and Dally 2016
(arXiv 1510.00149). One thread.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lenet
import lilliput
from compress_lenet import EXAMPLE, SETTINGS, Settings, cached, pruned, shared
from lilliput.core.packed import Packed
from lilliput.share.kmeans import KMeans
from paper_coding import codes_of, paper_coding
from paper_nets import PAPER_NETS
from real_data import MissingError

RESULT = Path(__file__).parent / "results" / "deep_compression.json"
DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks" / "deep-compression.md"
SEEDS = range(3)
STARTS = ("forgy", "density", "linear", "optimal")
FEW = (4,)
"""Numbers of shared values, in all layers, at which the starts are compared; the settings' own are enough for any."""
PAPER = {"lenet-300-100": (1.64, 1.58, 40), "lenet-5": (0.80, 0.74, 39)}
"""Error of the dense and the compressed network in per cent, and the ratio, in the paper."""


def run(name: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Compresses one network; kept in the cache.

    Returns:
        Test error in per cent and bytes of the whole file after each stage, and the paper's coding of the same codes.
    """
    path = cached(name, seed, settings, "result", "json")
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    dense = lenet.train(name, seed)
    sparse = pruned(name, seed, settings)
    before, after = shared(name, seed, settings)
    stages = {
        "dense": {"error": lenet.error(dense, "test"), "bytes": 4 * sum(p.numel() for p in dense.parameters())},
        "pruned": written(lilliput.compress(sparse, keeping_zeros(), example=EXAMPLE)),
        "shared": written(lilliput.pack(before, example=EXAMPLE)),
        "fine-tuned": written(lilliput.pack(after, example=EXAMPLE)),
    }
    artifact = lilliput.pack(after, example=EXAMPLE)
    layers = {}
    for layer in settings.layers:
        packed = artifact.weights[f"{layer}.weight"]
        assert isinstance(packed, Packed)
        row = paper_coding(*codes_of(packed))
        layers[layer] = {"weights": getattr(dense, layer).weight.numel(), **row}
    result = {
        "stages": stages,
        "kept": sum(row["kept"] for row in layers.values()),
        "papers_coding_bytes": sum(row["huffman_bytes"] for row in layers.values()) + biases(dense),
        "papers_fixed_width_bytes": sum(row["fixed_bytes"] for row in layers.values()) + biases(dense),
        "layers": layers,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def keeping_zeros() -> lilliput.Recipe:
    """A recipe that stores pruned weights as a mask and their float32 survivors."""
    return lilliput.Recipe.loads('[[rule]]\nsteps = [{ method = "prune/sparse" }]\n')


def biases(model: nn.Module) -> int:
    """Bytes of the biases in float32, as the paper leaves them."""
    return sum(4 * p.numel() for p in model.parameters() if p.ndim == 1)


def written(artifact: lilliput.Artifact) -> dict[str, float]:
    """Saves an artifact, loads it without the model's class and scores that on the test pictures."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        artifact.save(path)
        return {"error": lenet.error(lilliput.load(path).eval(), "test"), "bytes": path.stat().st_size}


def starts(name: str, settings: Settings) -> list[dict[str, Any]]:
    """Test error with few shared values, by the start of k-means, before and after fine-tuning; mean of the seeds."""
    rows = []
    for k in FEW:
        for start in STARTS:
            errors = []
            for seed in SEEDS:
                progress(f"{name}, {k} values, {start}, seed {seed}")
                pair = shared(name, seed, settings, KMeans(k=k, init=start))
                errors.append([lenet.error(model, "test") for model in pair])
            before, after = (round(statistics.mean(column), 3) for column in zip(*errors))
            rows.append({"values": k, "start": start, "error": before, "error_fine_tuned": after})
    return rows


def lenets(name: str) -> dict[str, Any]:
    """All of one LeNet."""
    settings = SETTINGS[name]
    runs = []
    for seed in SEEDS:
        progress(f"{name}, seed {seed}")
        runs.append(run(name, seed, settings))
    last = [one["stages"]["fine-tuned"] for one in runs]
    dense = [one["stages"]["dense"] for one in runs]
    error = statistics.mean(row["error"] for row in last)
    return {
        "settings": {layer: [plan.sparsity, plan.values] for layer, plan in settings.layers.items()},
        "mean_ratio": round(statistics.mean(a["bytes"] / b["bytes"] for a, b in zip(dense, last)), 1),
        "mean_error": round(error, 3),
        "mean_error_above_dense": round(error - statistics.mean(row["error"] for row in dense), 3),
        "seeds": runs,
        "starts": starts(name, settings),
    }


def drawn(name: str) -> dict[str, Any]:
    """AlexNet or VGG-16, in a process of its own so that its memory is its own."""
    progress(f"{name}, drawn weights")
    command = [sys.executable, str(Path(__file__).with_name("paper_nets.py")), name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def document(result: dict[str, Any]) -> str:
    """The tables of the result as Markdown."""
    lines = [
        "# Deep Compression",
        "",
        "Written by `python benchmarks/deep_compression.py`, with `benchmarks/results/deep_compression.json`. Sizes",
        "are of whole files, graph and header included; a ratio is float32 bytes of all parameters over that. The",
        "paper's figures (Han, Mao and Dally 2016, arXiv 1510.00149) count weights and indices.",
    ]
    for name in filter(result.__contains__, SETTINGS):
        lines += ["", f"## {name} on MNIST, three seeds", "", *lenet_tables(name, result[name])]
    nets = [name for name in PAPER_NETS if name in result]
    if nets:
        lines += ["", "## AlexNet and VGG-16, synthetic weights", "", *drawn_tables(result, nets)]
    return "\n".join(lines) + "\n"


def lenet_tables(name: str, found: dict[str, Any]) -> list[str]:
    dense, compressed, ratio = PAPER[name]
    stages = [one["stages"] for one in found["seeds"]]
    lines = ["| stage | test error %, by seed | mean | bytes, mean | ratio |", "| --- | --- | --- | --- | --- |"]
    for stage in stages[0]:
        errors = [one[stage]["error"] for one in stages]
        size = statistics.mean(one[stage]["bytes"] for one in stages)
        every = ", ".join(f"{error:.2f}" for error in errors)
        factor = statistics.mean(one["dense"]["bytes"] / one[stage]["bytes"] for one in stages)
        lines.append(f"| {stage} | {every} | {statistics.mean(errors):.3f} | {size:,.0f} | {factor:.1f}x |")
    ours = statistics.mean(one["stages"]["fine-tuned"]["bytes"] for one in found["seeds"])
    theirs = statistics.mean(one["papers_coding_bytes"] for one in found["seeds"])
    kept = statistics.mean(one["kept"] for one in found["seeds"])
    total = sum(layer["weights"] for layer in found["seeds"][0]["layers"].values())
    return [
        *lines,
        "",
        f"The mean error is {found['mean_error_above_dense']:+.3f} points from dense at {found['mean_ratio']}x; in the",
        f"paper {dense} % became {compressed} % at {ratio}x. {100 * kept / total:.1f} % of the weights are kept. The",
        "paper's coding of the same weights (relative index, Huffman; without graph or header) takes",
        f"{theirs:,.0f} bytes, the whole file {ours:,.0f}.",
        "",
        "By the start of k-means, so few values that it matters (test error %, mean of the seeds):",
        "",
        "| values | start | shared | fine-tuned |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['values']} | {row['start']} | {row['error']:.2f} | {row['error_fine_tuned']:.2f} |"
            for row in found["starts"]
        ),
    ]


def drawn_tables(result: dict[str, Any], nets: list[str]) -> list[str]:
    columns = ["network", "parameters", "file, MB", "the paper, MB", "the paper's coding of these weights, MB"]
    columns += ["CPU s to compress, save, load", "peak memory / float32 network"]
    lines = [
        "Weights are drawn (independent Laplacian in each layer), at the paper's density and bits for each layer:",
        "trained ones can't be had from a package registry. Kept weights of trained networks cluster in rows and",
        "columns, which a coder gains from and drawn ones don't show; no accuracy is stated.",
        "",
        f"| {' | '.join(columns)} |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in nets:
        row = result[name]
        times = " / ".join(f"{value:.1f}" for value in row["cpu_seconds"].values())
        peak = max(row["peak_memory_in_fp32_networks"].values())
        sizes = [row["file_bytes"], 1e6 * row["papers_megabytes"][1], row["papers_coding_bytes"]]
        cells = [name, f"{row['parameters']:,}", *(f"{size / 1e6:.2f}" for size in sizes), times, f"{peak:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result["machine"] = {"processor": platform.machine(), "python": platform.python_version(), "threads": 1}
    unknown = set(sys.argv[1:]) - {*SETTINGS, *PAPER_NETS}
    if unknown:
        raise MissingError(f"no network {unknown.pop()!r}: choose {', '.join((*SETTINGS, *PAPER_NETS))}")
    for name in sys.argv[1:] or (*SETTINGS, *PAPER_NETS):
        result[name] = lenets(name) if name in SETTINGS else drawn(name)
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        DOCUMENT.write_text(document(result))
    print(DOCUMENT.read_text())


if __name__ == "__main__":
    try:
        main()
    except MissingError as missing:
        sys.exit(str(missing))
