"""Plans of channels for the demo's CNN: half and 30 % of its MACs, beside one share for all layers.

    python benchmarks/plan_macs.py            # about a quarter of an hour on one thread
    python benchmarks/plan_macs.py --quick    # one budget, one seed, few batches; writes nothing
    python benchmarks/plan_macs.py --seeds 1 --batches 80    # less of it; the settings stand in the JSON

`plan` chooses the width of each group of channels by losses measured on four batches of training pictures (squares of
the weights rank the channels); `uniform` takes the smallest share of all groups alike that meets the budget, with the
same ranking; `random` takes as large a share of channels by chance. All are cut and then counted. Accuracy is that on
10,000 validation pictures, before and after one epoch of retraining (or so many batches of 128);
means and standard errors over the seeds of retraining (and of the random channels).
"""

import argparse
import json
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import fashion_cnn
import fashion_mnist
import lilliput
from lilliput import Budget, CutRule, Recipe
from lilliput.graph.macs import macs
from lilliput.prune.random import Random
from lilliput.train.cut import cut_by
from lilliput.train.fit import FitOptions

RESULT = Path(__file__).parent / "results" / "plan_macs.json"
EXAMPLE = torch.zeros(1, 1, 28, 28)


@dataclass(frozen=True)
class Settings:
    """How much is done.

    Attributes:
        parts: budgets, in parts of the MACs.
        seeds: of retraining, and of random channels.
        batches: training batches of 128 in the one epoch of retraining; 0 for all.
        validation: pictures.
    """

    parts: tuple[float, ...] = (0.5, 0.3)
    seeds: tuple[int, ...] = (0, 1, 2)
    batches: int = 0
    validation: int = 10_000


QUICK = Settings((0.5,), (0,), 20, 1000)


class Some:
    """The first batches of each pass over the augmented training pictures."""

    def __init__(self, count: int) -> None:
        self.batches = fashion_mnist.train_augmented()
        self.count = count or len(self.batches)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return (batch for _, batch in zip(range(self.count), self.batches))


def accuracy(model: nn.Module, pictures: int) -> float:
    model.eval()
    images, labels = fashion_mnist.load("validation")
    with torch.no_grad():
        found = [model(part).argmax(1) for part in images[:pictures].split(500)]
    return float((torch.cat(found) == labels[:pictures]).float().mean())


def calibration() -> list[Any]:
    torch.manual_seed(0)
    return [batch for _, batch in zip(range(4), fashion_mnist.train())]


def uniform(model: nn.Module, limit: int, criterion: Any = None) -> Recipe:
    """The smallest share of all channels alike, in steps of a hundredth, that leaves at most so many MACs."""
    for hundredth in range(1, 100):
        recipe = Recipe(cuts=(CutRule(share=hundredth / 100, criterion=criterion),))
        if macs(cut_by(model, recipe, EXAMPLE)[0], EXAMPLE) <= limit:
            return recipe
    raise AssertionError("no share is enough")


def measured(model: nn.Module, recipe: Recipe, seed: int, settings: Settings) -> dict[str, float]:
    smaller, _ = cut_by(model, recipe, EXAMPLE)
    before = accuracy(smaller, settings.validation)
    lilliput.fit(smaller, Some(settings.batches), epochs=1, options=FitOptions(seed=seed, progress=False))
    widths = {name: p.shape[0] for name, p in smaller.named_parameters() if p.ndim > 1}
    numbers = sum(parameter.numel() for parameter in smaller.parameters())
    after = accuracy(smaller, settings.validation)
    return {"macs": macs(smaller, EXAMPLE), "parameters": numbers, "before": before, "after": after, "widths": widths}


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| MACs asked | by | MACs | parameters | widths | before | after |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        runs = row["runs"]

        def text(key: str, runs: Any = runs) -> str:
            values = [100 * run[key] for run in runs]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            return f"{statistics.mean(values):.2f}" + (f" ± {error:.2f}" if error else "")

        widths = " ".join(str(width) for width in runs[0]["widths"].values())
        lines.append(
            f"| {row['part']:.0%} | {row['by']} | {runs[0]['macs']:,} | {runs[0]['parameters']:,} | {widths} "
            f"| {text('before')} | {text('after')} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=0)
    given = parser.parse_args()
    quick = given.quick
    settings = QUICK if quick else Settings(seeds=tuple(range(given.seeds)), batches=given.batches)
    torch.set_num_threads(1)
    model = fashion_cnn.trained()
    whole = macs(model, EXAMPLE)
    dense = accuracy(model, settings.validation)
    print(f"dense: {whole:,} MACs, {100 * dense:.2f} %")
    rows: list[dict[str, Any]] = []
    for part in settings.parts:
        limit = Budget(macs=f"{part:.0%}").count("macs", whole)
        planned = lilliput.plan(model, Budget(macs=limit), calibration())
        alike = uniform(model, limit)
        by_chance = [
            Recipe(cuts=(replace(alike.cuts[0], criterion=Random(seed=seed)),)) for seed in range(len(settings.seeds))
        ]
        for by, recipes in (("plan", [planned]), ("uniform", [alike]), ("random", by_chance)):
            runs = [
                measured(model, recipes[place % len(recipes)], seed, settings)
                for place, seed in enumerate(settings.seeds)
            ]
            assert all(run["macs"] <= limit for run in runs), f"{by}: the budget does not hold"
            rows.append({"part": part, "by": by, "recipe": recipes[0].dumps(), "runs": runs})
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))
    if not quick:
        result = {
            "settings": asdict(settings),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "dense": dense,
            "macs": whole,
            "rows": rows,
        }
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
