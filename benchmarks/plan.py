"""Plans beside uniform settings (one setting for every layer) of the same file size.

    python benchmarks/plan.py                 # both networks; writes results/plan.json
    python benchmarks/plan.py fashion         # one of them: fashion, efficientnet

The demo CNN on Fashion-MNIST: planned on 2,000 training pictures, compared on the 10,000 of the validation split
(accuracy, and divergence from the uncompressed network's outputs). EfficientNet-Lite0 with its ImageNet weights:
planned on crops of ten labelled pictures, compared on crops of ten others (divergence, and agreement of the first
class). For each uniform setting that no other beats, a plan is made whose file is not larger by a byte; biases and
norms are 16-bit floats in the uniform files too. Divergence is the mean KL(uncompressed || compressed) of the outputs
in nats. Two threads.
"""

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.method import WeightMethod, path_of
from lilliput.core.packed import Packed, pack_steps
from lilliput.core.recipe import Recipe, Rule
from lilliput.observe.divergence import kl
from lilliput.quantize.float16 import Float16
from lilliput.search.candidates import choices
from lilliput.search.cost import Frame, file_bytes
from lilliput.search.draft import Drafter
from lilliput.search.losses import OutputErrors, WeightErrors
from lilliput.search.plan import Options
from lilliput.search.space import Space, named

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "plan.json"
Score = Callable[[nn.Module], dict[str, float]]


def uniform_settings() -> Iterator[tuple[WeightMethod, ...]]:
    """Every setting of every method, side parts in 16 bits; with 4, 6 and 8 bits after pruning or factorizing."""
    for method in choices():
        if not method.into:
            yield (method,)
            continue
        yield method, Float16()
        if path_of(method).startswith(("prune/", "factorize/")):
            for second in choices():
                if getattr(second, "bits", 0) in {4, 6, 8}:
                    yield method, second, Float16()


def uniform_file(frame: Frame, steps: tuple[WeightMethod, ...]) -> Any:
    """The artifact of one setting everywhere; a weight that it can't take or makes larger stays 16-bit floats."""
    packed = {}
    for weight in frame.weights:
        value = weight.parameter.detach()
        packed[weight.name] = Float16().pack(value)
        if weight.kind != "vector":
            try:
                packed[weight.name] = pack_steps(value, steps)
            except (NotWorthwhile, MethodError):
                continue
    return frame.artifact(Recipe((Rule("*", steps), Rule("*", (Float16(),), layers="vector"))), packed)


def compare(model: nn.Module, batches: list[Any], score: Score, wanted: int) -> dict[str, Any]:
    """Makes all uniform files, and a plan for each that no other beats."""
    example = batches[0][0] if isinstance(batches[0], tuple) else batches[0]
    started = time.perf_counter()
    frame = Frame.of(model, example)
    uniform = uniform_rows(frame, score, started)
    best = front(uniform)
    started = time.perf_counter()
    space = Space.of(frame)
    searched = time.perf_counter() - started
    losses = OutputErrors(space, batches, Options().trials * len(space.items))
    drafter = Drafter(space, losses, "planned")
    blind = Drafter(space, WeightErrors(space), "planned without data")
    rows = []
    first = time.perf_counter() - started
    picked = best if len(best) <= wanted else [best[round(i * (len(best) - 1) / (wanted - 1))] for i in range(wanted)]
    for row in picked:
        draft, other = drafter.at(row["bytes"]), blind.at(row["bytes"])
        if draft is None or other is None:
            raise SystemExit(f"no plan of {row['bytes']} bytes")
        planned = {"bytes": draft.size, "predicted": draft.predicted, **score(draft.model())}
        without = {"bytes": other.size, **score(other.model())}
        rows.append({"uniform": row, "plan": planned, "plan_without_data": without})
        show(rows[-1])
    usable = [row for row in uniform if row["kl"] < 1]
    unbeaten = [row for row in usable if not beats(row, rows)]
    return {
        "original_bytes": frame.original,
        "uncompressed": score(frame.model),
        "seconds": {"settings": round(searched, 1), "until_first_plan": round(first, 1)},
        "trials": sum(len(known) for known in losses.measured),
        "layers": len(space.items),
        "rows": rows,
        "uniform_files": len(uniform),
        "uniform_files_below_one_nat": len(usable),
        "uniform_files_not_beaten": [row["setting"] for row in unbeaten],
        "uniform": uniform,
    }


def uniform_rows(frame: Frame, score: Score, started: float) -> list[dict[str, Any]]:
    """Sizes and scores; a setting that no layer can take, so that all are 16-bit floats, is passed over."""
    rows: list[dict[str, Any]] = []
    for steps in uniform_settings():
        artifact = uniform_file(frame, steps)
        found = {weight.method for weight in artifact.weights.values() if isinstance(weight, Packed)}
        if path_of(steps[0]) not in found:
            continue
        rows.append({"setting": named(steps), "bytes": file_bytes(artifact), **score(frame.compressed(artifact))})
        print(f"{time.perf_counter() - started:6.0f} s  {rows[-1]}", file=sys.stderr, flush=True)
    return rows


def front(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The files that no other beats in size and divergence, by size; those that diverge by a nat are of no use."""
    kept: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["bytes"], row["kl"])):
        if not kept or row["kl"] < kept[-1]["kl"]:
            kept.append(row)
    return [row for row in kept if row["kl"] < 1] or kept


def beats(uniform: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    """Whether a plan that is no larger diverges less than this uniform file."""
    return any(row["plan"]["bytes"] <= uniform["bytes"] and row["plan"]["kl"] < uniform["kl"] for row in rows)


def show(row: dict[str, Any]) -> None:
    for name, value in row.items():
        figures = ", ".join(f"{k} {v:.4g}" for k, v in value.items() if k not in {"setting", "bytes", "predicted"})
        print(f"{value['bytes']:>10,} bytes  {figures:<40} {name} {value.get('setting', '')}", flush=True)


def outputs(model: nn.Module, batches: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])


def fashion() -> dict[str, Any]:
    sys.path.insert(0, str(ROOT / "examples"))
    import fashion_cnn
    import fashion_mnist

    model = fashion_cnn.trained()
    batches = list(fashion_mnist.Batches("train", 500))[:4]
    held_out = [images for images, _ in fashion_mnist.validation()]
    labels = torch.cat([labels for _, labels in fashion_mnist.validation()])
    reference = outputs(model, held_out)

    def score(other: nn.Module) -> dict[str, float]:
        found = outputs(other, held_out)
        return {"kl": kl(reference, found), "accuracy": float((found.argmax(1) == labels).float().mean())}

    return compare(model, batches, score, 16)


def efficientnet() -> dict[str, Any]:
    from real_data import crops
    from real_models import efficientnet_lite0

    model = efficientnet_lite0()
    batches = list(crops(32, pictures=range(10)).split(8))
    held_out = list(crops(64, pictures=range(10, 20), seed=1).split(16))
    reference = outputs(model, held_out)

    def score(other: nn.Module) -> dict[str, float]:
        found = outputs(other, held_out)
        same = found.argmax(1) == reference.argmax(1)
        return {"kl": kl(reference, found), "agreement": float(same.float().mean())}

    return compare(model, batches, score, 8)


def main() -> None:
    torch.set_num_threads(2)
    networks = {"fashion": fashion, "efficientnet": efficientnet}
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result["machine"] = {"processor": platform.machine(), "python": platform.python_version(), "threads": 2}
    for name in sys.argv[1:] or networks:
        print(name)
        result[name] = networks[name]()
        usable, lost = result[name]["uniform_files_below_one_nat"], len(result[name]["uniform_files_not_beaten"])
        print(f"{usable - lost} of {usable} uniform files that diverge by less than a nat are beaten")
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
