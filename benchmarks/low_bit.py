"""MiniLM's weights in few bits, without training: bytes in the file against how far held-out embeddings move.

    python benchmarks/low_bit.py              # 15 minutes on one core: results/low_bit.json, the page in docs
    python benchmarks/low_bit.py --scored 0   # all 2,744 sentences that aren't for calibration, four times as long
    python benchmarks/low_bit.py --tables     # the page alone, of the rows that are there

All linear layers of the encoder (10.6 M of 22.7 M weights), calibrated on 256 sentences that aren't scored. Beside
ours: HQQ and optimum-quanto, put into a folder of the cache by pip without what they depend on. Bits are those of these
weights as they lie in the file, scales and all other side information included, a weight: ours of the coded streams,
theirs of the safetensors file of what their layers hold. Each set of weights is unpacked into the same float32 module,
so that all are scored by the same arithmetic. What a row gives is kept, so a run that was broken off goes on.
"""

import argparse
import copy
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import lilliput
from lilliput.core.layers import weights
from lilliput.core.method import WeightMethod
from lilliput.file.artifact import Artifact
from lilliput.file.write import sizes
from lilliput.observe.collect import collect
from lilliput.quantize.uniform import Uniform
from lilliput.share.kmeans import KMeans
from one_shot import CALIBRATION, batches, measured
from real_data import MissingError, cache_directory, sentences
from real_models import document_similarity, embed, minilm

RESULTS = Path(__file__).parent / "results" / "low_bit.json"
PEERS = ("hqq==0.2.8.post1", "optimum-quanto==0.2.7", "termcolor==3.1.0")
DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks" / "low-bit.md"
GPTQ = ("4", "3.95", "3.6", "3", "5", "6", "2.5", "2", "7.9", "4.5")
CURVE = "uniform, rate:"

Found = tuple[dict[str, Tensor], float]
"""Weights by name, and what they take in the file, bytes."""


def ours(step: WeightMethod, own: dict[str, Tensor], stats: dict[str, Any]) -> Found:
    """Packs every weight by one method."""
    packed = {name: step.pack(weight, stats[name]) for name, weight in own.items()}
    parts = sizes(Artifact(packed))
    taken = sum(sum(leaf.values()) for table in ("coded", "floats") for leaf in parts[table].values())
    return {name: lilliput.unpack(one) for name, one in packed.items()}, taken


def fine(solver: str) -> Uniform:
    """One scale a tensor and as many codes as its outliers take: for the entropy coder."""
    return Uniform(bits=12, per="tensor", solver=solver)


def peers() -> None:
    """Puts the peers where they can be imported."""
    if not shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
        raise MissingError("optimum-quanto compiles by ninja, which isn't there: pip install ninja")
    home = cache_directory() / "low-bit-peers"
    done = home / ("-".join(PEERS).replace("=", "") + ".done")
    if not done.exists():
        print(f"putting {', '.join(PEERS)} into {home}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target"]
        ended = subprocess.run([*command, str(home), *PEERS], capture_output=True, text=True, check=False,
                               env={**os.environ, "DISABLE_CUDA": "1"})  # fmt: skip
        if ended.returncode:
            raise MissingError(f"the peers can't be installed: {(ended.stderr.strip().splitlines() or ['?'])[-1]}")
        done.touch()
    sys.path.append(str(home))
    # quanto compiles where it unpacks: by ninja, and forever behind the lock of a process that was killed meanwhile.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for lock in (home / "optimum" / "quanto" / "library" / "extensions" / "cpp" / "build").glob("lock"):
        lock.unlink()


def stored(tensors: dict[str, Tensor]) -> int:
    """Bytes of a safetensors file of these tensors."""
    return len(safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def hqq(bits: int, group: int, axis: int) -> Callable[[dict[str, Tensor]], Found]:
    """HQQ on the CPU, as its own defaults have it but for bits, group and axis."""

    def run(own: dict[str, Tensor]) -> Found:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        found, kept = {}, {}
        for name, weight in own.items():
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
            config = BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
            packed = HQQLinear(layer, quant_config=config, compute_dtype=torch.float32, device="cpu")
            found[name] = packed.dequantize().reshape(weight.shape).float()
            for part, value in packed.state_dict().items():
                if isinstance(value, Tensor):
                    kept[f"{name}.{part}"] = value
        return found, stored(kept)

    return run


def quanto(kind: str) -> Callable[[dict[str, Tensor]], Found]:
    """optimum-quanto: `quantize`, `freeze`."""

    def run(own: dict[str, Tensor]) -> Found:
        from optimum import quanto as package

        found, kept = {}, {}
        for name, weight in own.items():
            layer = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
            layer[0].weight = nn.Parameter(weight.clone(), requires_grad=False)
            package.quantize(layer, weights=getattr(package, kind))
            package.freeze(layer)
            found[name] = layer[0].weight.dequantize().float()
            for part, value in layer.state_dict().items():
                if isinstance(value, Tensor) and "weight" in part:
                    kept[f"{name}.{part}"] = value
        return found, stored(kept)

    return run


def rows() -> dict[str, WeightMethod | Callable[[dict[str, Tensor]], Found]]:
    """What is measured, peers and ours by turns."""
    found: dict[str, Any] = {}
    settings = ((4, 64, 0), (3, 64, 0), (2, 64, 0), (8, 64, 1), (4, 64, 1), (4, 128, 1), (2, 16, 0))
    theirs = {f"HQQ {b} bits, group {g}, axis {a}": hqq(b, g, a) for b, g, a in settings}
    theirs |= {f"optimum-quanto {kind}": quanto(kind) for kind in ("qint4", "qint2", "qint8")}
    mine = {f"uniform, rate:{rate}+gptq": fine(f"rate:{rate}+gptq") for rate in GPTQ}
    for (name, one), (other, two) in zip(theirs.items(), mine.items()):
        found |= {name: one, other: two}
    for bits in (4, 3, 5, 2):
        found[f"k-means {bits} bits"] = KMeans(bits=bits)
        found[f"k-means {bits} bits, gptq"] = KMeans(bits=bits, solver="gptq")
    found |= {f"uniform, rate:{rate}, no gptq": fine(f"rate:{rate}") for rate in ("4", "3", "5")}
    for bits in (8, 4, 3, 2):
        found[f"uniform {bits} bits a row"] = Uniform(bits=bits)
    for bits in (4, 3, 2):
        for solver in ("minmax", "mse", "hqq", "mse+gptq"):
            name = f"uniform {bits} bits, groups of 64, {solver}"
            found[name] = Uniform(bits=bits, per="group", group=64, solver=solver)
    return found


def at(points: list[tuple[float, float]], where: float) -> float:
    """Returns the logarithm of a curve at a place, straight between its points; NaN beyond them.

    >>> round(math.exp(at([(2.0, 0.1), (4.0, 0.001)], 3.0)), 3)
    0.01
    """
    points = sorted(points)
    for (low, first), (high, last) in pairwise(points):
        if low <= where <= high:
            share = (where - low) / (high - low)
            return (1 - share) * math.log(first) + share * math.log(last)
    return math.nan


def bits_at(points: list[tuple[float, float]], distance: float) -> float:
    """Returns the bits at which a curve has a distance.

    >>> bits_at([(2.0, 0.1), (4.0, 0.001)], 0.01)
    3.0
    """
    return at([(math.log(error), math.exp(bits)) for bits, error in points], math.log(distance))


def told(found: dict[str, Any]) -> str:
    """Says how many of the rows are there."""
    return f"{len(found['rows'])} of {len(rows()) + 1} rows have been run."


def above(rows: list[dict[str, Any]], curve: list[tuple[float, float]]) -> str:
    """Says which peers lie below the curve, those beyond its ends by the nearest of its points that take fewer bits."""
    under, count = [], 0
    for row in rows:
        if not row["method"].startswith(("HQQ", "optimum")):
            continue
        count += 1
        fewer = [error for bits, error in curve if bits <= row["bits"]]
        if not fewer or min(fewer) >= row["distance"]:
            under.append(row["method"])
    told = ", ".join(under) if under else "none"
    return f"Peers that no point of the curve with at most their bits outdoes: {told}, of {count}."


def table(found: dict[str, Any]) -> str:
    """Returns the page: all rows by their bits, then what they say of the peers and of k-means."""
    rows = sorted(found["rows"], key=lambda row: row["bits"])
    curve = [
        (row["bits"], row["distance"])
        for row in rows
        if row["method"].startswith(CURVE) and row["method"].endswith("gptq") and "no gptq" not in row["method"]
    ]
    lines = [
        f"# MiniLM's weights in few bits: `{found['command']}`",
        "",
        f"The {found['weights']:,} weights of the encoder's linear layers, without training, calibrated on",
        f"{found['calibration']} sentences; scored on {rows[0]['scored']:,} others: mean 1 - cosine of a sentence's",
        "embedding to the dense network's and its standard error, the sentiment probe on them (5 folds, and their",
        "deviation), Spearman's correlation on the 353 pairs of WordSim-353 and the 1,225 pairs of Lee's 50 documents.",
        "*Bits* are those in the file, scales and all else included, a weight. CPU seconds of packing, one thread.",
        told(found),
        "",
        "| | bits | 1 - cosine | sentiment | WordSim-353 | Lee | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seconds = "" if row["method"] == "dense" else f"{row['seconds']:.0f}"
        lines.append(
            f"| {row['method']} | {row['bits']:.2f} | {row['distance']:.5f} ({row['distance_error']:.5f}) "
            f"| {100 * row['sentiment']:.1f} % ({100 * row['sentiment_deviation']:.1f}) | {row['wordsim353']:.3f} "
            f"| {row['lee']:.3f} | {seconds} |"
        )
    lines += [
        "",
        f"Calibration takes another {found['seconds of calibration']} s of CPU for all rows with `gptq`. The curve of",
        f"`{CURVE}...+gptq`, straight between its points in bits and the logarithm of 1 - cosine, beside each peer and",
        "beside k-means:",
        "",
        "| | bits | 1 - cosine | the curve there | bits of the curve at the same 1 - cosine | fewer bits |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if not row["method"].startswith(("HQQ", "optimum", "k-means")):
            continue
        error, bits = math.exp(at(curve, row["bits"])), bits_at(curve, row["distance"])
        there = "not measured" if math.isnan(error) else f"{error:.5f}"
        same, fewer = ("not measured", "") if math.isnan(bits) else (f"{bits:.2f}", f"{1 - bits / row['bits']:.1%}")
        lines.append(f"| {row['method']} | {row['bits']:.2f} | {row['distance']:.5f} | {there} | {same} | {fewer} |")
    best = math.exp(at(curve, 3.6))
    lines += ["", f"At 3.60 bits the curve is at {best:.4f}." if not math.isnan(best) else "", ""]
    lines += [above(rows, curve), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scored", type=int, default=500, help="sentences; 0: all that aren't for calibration")
    parser.add_argument("--tables", action="store_true", help="measures nothing")
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose name holds one of these")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.tables:
        DOCUMENT.write_text(table(json.loads(options.output.read_text())))
        return
    torch.manual_seed(0)
    torch.set_num_threads(1)
    peers()
    model, tokenizer = minilm()
    texts, labels = sentences()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1)).tolist()
    chosen = order[CALIBRATION:][: options.scored or None]
    scored, classes = [texts[i] for i in chosen], torch.tensor([labels[i] for i in chosen])
    layers = [w for w in weights(model) if w.kind == "linear" and w.name.startswith("encoder.")]
    own = {w.name: w.parameter.detach().clone() for w in layers}
    count = sum(weight.numel() for weight in own.values())
    about = {
        "command": "python benchmarks/low_bit.py" + (f" --scored {options.scored}" if options.scored != 500 else ""),
        "torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads(),
        "peers": PEERS, "calibration": CALIBRATION, "scored": len(scored), "word pairs": 353, "weights": count,
    }  # fmt: skip
    known = json.loads(options.output.read_text())["rows"] if options.output.exists() else []
    known = [row for row in known if row["scored"] == len(scored)]
    reference = embed(model, tokenizer, scored)
    begun = time.process_time()
    stats = collect(model, dict.fromkeys(own, frozenset({"gram"})), batches(tokenizer, [texts[i] for i in order[:256]]))
    about["seconds of calibration"] = round(time.process_time() - begun, 1)
    for name, method in {"dense": None, **rows()}.items():
        if not any(part in name for part in options.only) or any(row["method"] == name for row in known):
            continue
        begun = time.process_time()
        if method is None:
            found, taken = own, 4.0 * count
        else:
            found, taken = ours(method, own, stats) if hasattr(method, "pack") else method(own)
        row = {"method": name, "bits": 8 * taken / count, "seconds": time.process_time() - begun, "scored": len(scored)}
        changed = copy.deepcopy(model)
        with torch.no_grad():
            for weight in weights(changed):
                if weight.name in found:
                    weight.parameter.copy_(found[weight.name])
        row |= measured(changed, tokenizer, reference, scored, classes)
        known.append(row | {"lee": document_similarity(changed, tokenizer)})
        print(json.dumps(known[-1]), flush=True)
        options.output.write_text(json.dumps({**about, "rows": known}, indent=1) + "\n")
    DOCUMENT.write_text(table(json.loads(options.output.read_text())))


if __name__ == "__main__":
    try:
        main()
    except MissingError as error:
        sys.exit(str(error))
