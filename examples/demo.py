"""Deep Compression on a trained network, end to end: prune, retrain, share, fine-tune, code, load without the class.

    python examples/demo.py [--out out] [--epochs 3 1] [--seed 0]

The network is `fashion_cnn.py` with its checkpoint, the data Fashion-MNIST. The training loop is the user's own:
Lilliput is four calls (`attach`, `advance`, `pack`, `load`) around it. Han, Mao and Dally 2016, arXiv 1510.00149.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fashion_mnist
import lilliput
from fashion_cnn import trained
from lilliput.coding.bitpack import Bitpack
from lilliput.coding.relative import entries
from lilliput.core.packed import leaves
from lilliput.distill.logits import Logits
from lilliput.file.write import dumps, sizes
from lilliput.report.collect import Report
from lilliput.report.facts import Stage, record

PRUNE = """
[[rule]]  # the convolutions are few and sensitive
layers = "conv*"
steps = [{method = "prune/magnitude", sparsity = 0.4}]
schedule = {method = "prune/iterative", rounds = 8, until = 0.5}

[[rule]]
steps = [{method = "prune/magnitude", sparsity = 0.92}]
schedule = {method = "prune/iterative", rounds = 8, until = 0.5}
"""
SHARE = """
[[rule]]
layers = "conv*"
steps = [
  {method = "prune/magnitude", sparsity = 0.4},
  {method = "share/kmeans", bits = 5},
  {method = "quantize/float16"},
]

[[rule]]
layers = "vector"
steps = [{method = "quantize/float16"}]

[[rule]]
steps = [
  {method = "prune/magnitude", sparsity = 0.92},
  {method = "share/kmeans", bits = 4},
  {method = "quantize/float16"},
]
"""


def train(model: nn.Module, epochs: int, rate: float, label: str) -> None:
    """An ordinary training loop; `advance` lets the pruning schedule take its rounds, the dense network teaches."""
    pictures, labels = fashion_mnist.load("train")
    taught, distillation = taught_by(trained(), pictures), Logits(temperature=3, weight=0.7)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), rate)
    batches = [batch for _ in range(epochs) for batch in torch.randperm(len(labels)).split(128)]
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    model.train()
    model.get_submodule("drop1").p = model.get_submodule("drop2").p = 0.15  # fewer connections need less dropout
    shown = track(batches, label, transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True))
    for step, batch in enumerate(shown):
        lilliput.advance(model, step / len(batches))
        loss = distillation.loss(model(pictures[batch]), taught[batch], labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
    lilliput.advance(model, 1.0)
    model.eval()


@torch.no_grad()
def taught_by(teacher: nn.Module, pictures: Tensor) -> Tensor:
    """The dense network's logits for all pictures, once."""
    teacher = teacher.to(memory_format=torch.channels_last)
    return torch.cat([teacher(batch) for batch in pictures.split(500)])


def uncoded(artifact: lilliput.Artifact) -> int:
    """Bytes of the file without an entropy coder: indices in fixed width, sparse ones as gaps of 5 bits and values."""
    now = sizes(artifact)
    coded = sum(sum(parts.values()) for parts in now["coded"].values())
    integers = [t.numpy() for w in artifact.weights.values() for _, t in leaves(w) if not t.dtype.is_floating_point]
    return int(now["total"]) - coded + sum(fixed_width(array) for array in integers)


def fixed_width(array: np.ndarray) -> int:
    """Bytes of an integer array, bit-packed whole or by the paper's relative index, whichever is smaller."""
    pack = Bitpack()
    gaps, values = entries(array.reshape(-1).astype(np.int64), 5)
    return min(pack.cost(array), pack.cost(gaps) + pack.cost(values))


def main() -> None:
    """Runs the demo and prints the table of stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the file and the report")
    parser.add_argument("--epochs", type=int, nargs=2, default=(3, 1), metavar=("PRUNE", "SHARE"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    begun = time.perf_counter()

    model = trained().to(memory_format=torch.channels_last)  # half the time on a CPU
    example = fashion_mnist.load("test")[0][:2]
    stages = [Stage("dense, fp32", sum(p.numel() * 4 for p in model.state_dict().values()), accuracy(model))]

    lilliput.attach(model, lilliput.Recipe.loads(PRUNE), example=example)
    train(model, options.epochs[0], 1e-3, "prune and retrain")
    stages.append(Stage("pruned, retrained", len(dumps(lilliput.pack(model))), accuracy(model)))

    lilliput.attach(model, lilliput.Recipe.loads(SHARE))
    stages.append(Stage("shared", uncoded(lilliput.pack(model)), accuracy(model)))
    train(model, options.epochs[1], 3e-4, "fine-tune the shared values")
    artifact = lilliput.pack(model)
    stages.append(Stage("fine-tuned", uncoded(artifact), accuracy(model)))
    stages.append(Stage("coded: the file", 0, stages[-1].accuracy))
    save(artifact, stages, options.out)

    loaded = lilliput.load(options.out / "fashion_cnn.safetensors")
    show(stages, accuracy(loaded))
    print(f"file   {options.out / 'fashion_cnn.safetensors'}\nreport {options.out / 'report.html'}")
    print(f"{time.perf_counter() - begun:.0f} seconds")


def accuracy(model: nn.Module) -> float:
    """Part of the 10,000 test pictures that the model gets right."""
    return fashion_mnist.test_accuracy(model)


def save(artifact: lilliput.Artifact, stages: list[Stage], folder: Path) -> None:
    """Writes file and report; the last stage's size is the file's, which holds the table too."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fashion_cnn.safetensors"
    size = 0
    while size != stages[-1].bytes or not size:
        # The file holds its own size in its table; it settles at once, since the digits stay as many.
        stages[-1] = Stage(stages[-1].name, size or 10_000, stages[-1].accuracy)
        told = record(artifact, before=stages[0].accuracy, after=stages[-1].accuracy, stages=stages)
        size = told.save(path)
    Report(told, original=trained(), path=path).save(folder / "report.html")


def show(stages: list[Stage], loaded: float) -> None:
    """Prints the table of stages."""
    table = Table("stage", "bytes", "smaller", "test accuracy", title="Deep Compression of a Fashion-MNIST network")
    for stage in stages:
        table.add_row(stage.name, f"{stage.bytes:,}", f"{stages[0].bytes / stage.bytes:.1f}x", f"{stage.accuracy:.2%}")
    table.add_row("loaded without its class", "", "", f"{loaded:.2%}")
    for column in table.columns[1:]:
        column.justify = "right"
    Console().print(table)


if __name__ == "__main__":
    main()
