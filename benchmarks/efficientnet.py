"""EfficientNet-Lite0 with its ImageNet weights, without data, at 8, 6, 5 and 4 bits: bytes, time, and what it costs.

    python benchmarks/efficientnet.py [--bits 8 6 5 4] [--crops 500]

BatchNorm is folded; one scale a tensor and one a row are shown. Integer streams with their side information,
manifest and graph are set against the order-0 entropy of the same integers per tensor; scales and biases have a
column of their own. The classless network is compared with the unpacked module, and with the float32 network on
labelled pictures and crops. Writes `benchmarks/results/efficientnet.json`.
"""

import argparse
import json
import math
import platform
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import lilliput
from lilliput.coding.choose import entropy_bits
from lilliput.core.packed import leaves
from lilliput.core.recipe import Rule
from lilliput.file.write import sizes
from lilliput.quantize.uniform import Uniform
from real_data import crops, imagenet_pictures
from real_models import efficientnet_lite0

RESULTS = Path(__file__).parent / "results" / "efficientnet.json"


@torch.no_grad()
def logits(model: nn.Module, pictures: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in pictures.split(25)])


def measure(model: nn.Module, bits: int, per: str, reference: tuple[Tensor, Tensor], pictures: Tensor) -> dict:
    """One row of the table: the whole job, timed, and its file taken apart."""
    recipe = lilliput.Recipe((Rule(steps=(Uniform(bits=bits, per=per),)),))
    begun = time.perf_counter()
    artifact = lilliput.compress(model, recipe, example=torch.zeros(1, 3, 224, 224))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        total = artifact.save(path)
        job = time.perf_counter() - begun
        begun = time.perf_counter()
        net = lilliput.load(path)
        load = time.perf_counter() - begun
        module = lilliput.load(path, into=efficientnet_lite0())
    parts = sizes(artifact)
    integers = [t.numpy() for w in artifact.weights.values() for _, t in leaves(w) if not t.dtype.is_floating_point]
    entropy = math.ceil(sum(entropy_bits(array) for array in integers) / 8)
    coded = sum(sum(leaf.values()) for leaf in parts["coded"].values())
    floats = sum(sum(leaf.values()) for leaf in parts["floats"].values())
    return {
        "bits": bits,
        "per": per,
        "bytes": total,
        "coded": coded,
        "manifest and graph": parts["manifest"] + parts["graph"] + parts["header"],
        "entropy": entropy,
        "over entropy %": 100 * ((total - floats) / entropy - 1),
        "scales and biases": floats,
        "job s": job,
        "load s": load,
        **agreement(net, module, reference, pictures),
    }


def agreement(net: nn.Module, module: nn.Module, reference: tuple[Tensor, Tensor], pictures: Tensor) -> dict:
    """What the compressed network says, beside the float32 network's logits on pictures and crops."""
    images, labels = imagenet_pictures()
    ours, cropped = logits(net, images), logits(net, pictures)
    top = ours.topk(5).indices
    return {
        "classless - module": float((ours - logits(module, images)).abs().max()),
        "top-1 of 20": int((top[:, 0] == labels).sum()),
        "top-5 of 20": int((top == labels[:, None]).any(1).sum()),
        "n crops": len(pictures),
        "agreement %": 100 * float((cropped.argmax(1) == reference[1].argmax(1)).float().mean()),
        "cosine": float(functional.cosine_similarity(cropped, reference[1]).mean()),
    }


def main() -> None:
    """Measures all settings, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 5, 4])
    parser.add_argument("--crops", type=int, default=500)
    options = parser.parse_args()
    model = efficientnet_lite0().eval()
    pictures = crops(options.crops)
    reference = (logits(model, imagenet_pictures()[0]), logits(model, pictures))
    rows = []
    for per in ("tensor", "row"):
        for bits in options.bits:
            rows.append(measure(model, bits, per, reference, pictures))
            print(json.dumps(rows[-1]), flush=True)
    table = Table(*rows[0], title="EfficientNet-Lite0, 4,652,008 parameters, 18.6 MB in float32")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=200).print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    about = {"command": "python benchmarks/efficientnet.py", "torch": torch.__version__, "machine": platform.machine()}
    RESULTS.write_text(json.dumps({**about, "threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
