"""How long packing takes with the slower solvers, from the float32 model to the file, on two cores.

    python benchmarks/packing.py                # three rounds, a few minutes; writes results/packing.json
    python benchmarks/packing.py --threads 1

EfficientNet-Lite0 with weights and activations in 8 bits, `mse+gptq` and `mse`, calibrated on 128 crops; all linear
layers of MiniLM's encoder in 4 bits by `mse+gptq` in groups of 64, calibrated on 256 sentences. Wall time counts here,
and CPU time beside it tells what a busy machine took of it.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lilliput
from one_shot import CALIBRATION, LAYERS, batches
from ptq import recipe
from real_data import crops, sentences
from real_models import efficientnet_lite0, minilm
from resumed import machine

RESULTS = Path(__file__).parent / "results" / "packing.json"


def efficientnet() -> Callable[[], lilliput.Artifact]:
    """EfficientNet-Lite0 in 8 bits, ready to be packed."""
    model, data = efficientnet_lite0(), list(crops(128, range(10), seed=1).split(16))
    return lambda: lilliput.compress(model, lilliput.Recipe.loads(recipe(8, "mse+gptq", "mse")), data)


def encoder() -> Callable[[], lilliput.Artifact]:
    """MiniLM's encoder in 4 bits, ready to be packed."""
    from lilliput.quantize.uniform import Uniform

    model, tokenizer = minilm()
    texts, _ = sentences()
    data = batches(tokenizer, texts[:CALIBRATION])
    step = Uniform(bits=4, per="group", group=64, solver="mse+gptq")
    rules = lilliput.Recipe((lilliput.Rule(steps=(step,), **LAYERS), lilliput.Rule()))
    return lambda: lilliput.compress(model, rules, data, fold=False, remove_dead=False)


CASES = {"EfficientNet-Lite0, 8 bits, 128 crops": efficientnet, "MiniLM, 4 bits, 256 sentences": encoder}


def measured(pack: Callable[[], lilliput.Artifact]) -> dict[str, Any]:
    """Packs once and writes the file."""
    wall, own = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        size = pack().save(Path(folder) / "net.safetensors")
    return {"s": time.perf_counter() - wall, "CPU s": time.process_time() - own, "bytes": size}


def main() -> None:
    """Packs in turn, round by round, and writes the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    packs = {name: make() for name, make in CASES.items()}
    rounds = [{name: measured(pack) for name, pack in packs.items()} for _ in range(options.rounds)]
    rows = {
        name: {key: round(statistics.median(one[name][key] for one in rounds), 1) for key in rounds[0][name]}
        for name in packs
    }
    result = {"machine": machine(), "threads": options.threads, "rounds": options.rounds, "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print("| | seconds | CPU seconds | file, bytes |\n| --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {row['s']:.0f} | {row['CPU s']:.0f} | {row['bytes']:,.0f} |")


if __name__ == "__main__":
    main()
