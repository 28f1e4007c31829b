"""Factorizations and rank rules beside one another: error, parameters, multiplications and measured latency.

    python benchmarks/factorize.py                    # all four parts; writes results/factorize.json
    python benchmarks/factorize.py minilm vgg         # some of them: times, minilm, efficientnet, vgg
    python benchmarks/factorize.py vgg --quick        # few pictures; writes nothing
    python benchmarks/factorize.py --finished         # the rows that are there already

An hour of one quiet core, row by row: it goes on where it stopped.

`minilm`: the linear layers of all-MiniLM-L6-v2's encoder, so that the whole has a quarter fewer parameters (by `ratio`
and `budget`; other rules choose for themselves); calibrated on 256 sentences, 1 - cosine of the embeddings of 1,000
others. `efficientnet`: the pointwise convolutions and the last layer of EfficientNet-Lite0; calibrated on crops of ten
labelled pictures, scored on 250 crops of ten others, without training. `vgg`: a VGG-11 a quarter as wide, trained on
Fashion-MNIST, factorized to half of its multiplications by each method that gives layers, before and after two epochs
over 20,000 of the training pictures, and four of them over all 50,000; accuracy on the 10,000 validation pictures.
`times`: VGG-16's fc6 by random projections to rank 512, ResNet-18 by Tucker with EVBMF, and VGG-16 by block terms
beside its dense self; random weights. Everything runs on one thread. Latency is the classless network's, dense and
factorized in turn, the ratio of medians of CPU time.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import lilliput
from lilliput.core.layers import weights
from lilliput.core.method import WeightMethod
from lilliput.core.packed import Packed, leaves
from lilliput.core.recipe import Recipe, Rule
from lilliput.factorize.block_term import BlockTerm
from lilliput.factorize.cp import Cp
from lilliput.factorize.spatial import Spatial
from lilliput.factorize.spatial_own import SpatialOwn
from lilliput.factorize.svd import Svd
from lilliput.factorize.tensor_train import TensorTrain
from lilliput.factorize.toeplitz import Toeplitz
from lilliput.factorize.tucker import Tucker
from lilliput.factorize.whitened import Whitened
from lilliput.observe.collect import collect
from lilliput.observe.divergence import kl
from lilliput.train.fit import FitOptions
from real_data import MissingError, cache_directory
from resumed import machine, result

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "factorize.json"
ROUNDS = 9
VGG_EPOCHS, TUNING, TUNED = 6, 2, 20_000
LONGER = ("svd, budget", "whitened, budget", "spatial", "block_term, 2")
SCORED = 1_000
FINISHED = False
"""Whether rows that aren't in the cache are left out."""


def rules(cls: Any, ratio: float) -> dict[str, WeightMethod]:
    """Every rank rule of the two matrix factorizations; the first two hold the same part of the numbers."""
    made = {"ratio": cls(rule="ratio", ratio=ratio), "budget": cls(rule="budget", ratio=ratio)}
    energies = {f"energy {energy}": cls(rule="energy", energy=energy) for energy in (0.9, 0.99)}
    return made | energies | {"evbmf": cls(rule="evbmf")}


def kept(name: str, quick: bool, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row, from the cache if it is there and not only looked at; printed."""
    path = cache_directory() / "factorize" / f"{name}.json".replace(" ", "_")
    if FINISHED and not path.is_file():
        return {}
    row = measure() if quick else result(path, measure)
    print(json.dumps(row), flush=True)
    return row


def calibration(model: nn.Module, data: list[Any], one: Any, other: Any, dense: Any) -> float:
    """The largest ratio, over the layers, of two artifacts' squared errors of the outputs on the calibration data."""
    names = [name for name, packed in one.weights.items() if isinstance(packed, Packed)]
    stats = collect(model, dict.fromkeys(names, frozenset({"gram"})), data)
    worst = 0.0
    for name in names:
        gram = stats[name].values["gram"].matrix.double()
        if len(gram) > 1 or not isinstance(other.weights[name], Packed):
            continue
        errors = []
        for artifact in (one, other):
            gone = (lilliput.unpack(artifact.weights[name]) - lilliput.unpack(dense.weights[name])).double().flatten(1)
            errors.append(float((gone @ gram[0] * gone).sum()))
        worst = max(worst, errors[0] / errors[1])
    return worst


def numbers(packed: Any) -> int:
    """Floats that a network holds: factors, and what stayed as it was."""
    return sum(leaf.numel() for part in packed.values() for _, leaf in leaves(part))


def multiplications(net: Callable[..., Any], *example: Any, **named: Any) -> int:
    """Multiply-accumulates of one call."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*example, **named)
    return counter.get_total_flops() // 2


@torch.no_grad()
def latencies(calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median CPU seconds of each call, one after the other in each round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            if number:
                found[name].append(time.thread_time() - start)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def relative(net: Callable[[], Any], dense: Callable[[], Any]) -> float:
    """Latency over the dense network's."""
    found = latencies({"net": net, "dense": dense})
    return round(found["net"] / found["dense"], 3)


def minilm(quick: bool) -> Any:
    """MiniLM with a quarter fewer parameters."""
    from one_shot import CALIBRATION, LAYERS, batches
    from real_data import sentences
    from real_models import embed, word_similarity
    from real_models import minilm as load

    torch.set_num_threads(1)
    model, tokenizer = load()
    texts, _ = sentences()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1)).tolist()
    data = batches(tokenizer, [texts[i] for i in order[:CALIBRATION]])
    scored = [texts[i] for i in order[CALIBRATION:]][: 100 if quick else SCORED]
    reference = embed(model, tokenizer, scored)
    total = sum(parameter.numel() for parameter in model.parameters())
    inner = [w for w in weights(model) if w.kind == "linear" and w.name.startswith("encoder")]
    held = sum(weight.parameter.numel() for weight in inner)
    ratio = (held - 0.25 * total) / held
    tokens = dict(tokenizer(scored[:16], padding=True, return_tensors="pt"))
    whole = lilliput.compress(model, Recipe((Rule(),)), data, fold=False, remove_dead=False)
    dense = lilliput.load(whole)

    def packed(*steps: WeightMethod) -> Any:
        """The encoder by one method, or attention's projections by the first and the others by the second."""
        first = [Rule(match="encoder.*attention*", layers="linear", steps=steps[:1])] if len(steps) > 1 else []
        recipe = Recipe((*first, Rule(steps=steps[-1:], **LAYERS), Rule()))
        return lilliput.compress(model, recipe, data, fold=False, remove_dead=False)

    def row(method: str, rule: str, *steps: WeightMethod) -> dict[str, Any]:
        begun = time.thread_time()
        artifact = packed(*steps)
        seconds = time.thread_time() - begun
        net = lilliput.load(artifact)
        distance = 1 - (embed(net, tokenizer, scored) * reference).sum(1)
        return {
            "method": method,
            "rule": rule,
            "fewer_parameters": 1 - numbers(artifact.weights) / total,
            "distance": float(distance.mean()),
            "distance_error": float(distance.std() / len(scored) ** 0.5),
            "wordsim353": word_similarity(net, tokenizer),
            "latency": relative(lambda: net(**tokens), lambda: dense(**tokens)),
            "seconds": round(seconds, 1),
        }

    cases: list[tuple[str, str, tuple[WeightMethod, ...]]] = []
    for cls in (Whitened, Svd):
        cases += [(cls.__name__.lower(), name, (step,)) for name, step in rules(cls, ratio).items()]
    # Ranks by which two cores hold this part of a 384 x 384 and of a 1536 x 384 matrix.
    trains = TensorTrain(rank=int(ratio * 384 / 2), cores=2), TensorTrain(rank=int(ratio * 354), cores=2)
    cases += [("tensor_train", "two cores", trains), ("toeplitz", "ratio", (Toeplitz(ratio=ratio),))]
    rows = [kept(f"minilm-{m}-{r}", quick, lambda m=m, r=r, s=s: row(m, r, *s)) for m, r, s in cases]  # type: ignore[misc]

    def worst() -> dict[str, Any]:
        aware, plain = packed(Whitened(rule="ratio", ratio=ratio)), packed(Svd(rule="ratio", ratio=ratio))
        return {"worst": calibration(model, data, aware, plain, whole)}

    return {
        "scored": len(scored),
        "word_pairs": 353,
        "dense_wordsim353": word_similarity(model, tokenizer),
        "calibration_error_over_plain": kept("minilm-calibration", quick, worst).get("worst"),
        "rows": [row for row in rows if row],
    }


def efficientnet(quick: bool) -> Any:
    """EfficientNet-Lite0's pointwise convolutions, without training."""
    from real_data import crops
    from real_models import efficientnet_lite0

    torch.set_num_threads(1)
    model = efficientnet_lite0()
    data = list(crops(32, pictures=range(10)).split(8))
    scored = crops(16 if quick else 250, pictures=range(10, 20), seed=1)
    whole = lilliput.compress(model, Recipe((Rule(),)), data)
    dense = lilliput.load(whole)
    reference = outputs(dense, scored)
    one = scored[:1]
    base = {"parameters": numbers(whole.weights), "macs": multiplications(dense, one)}
    # Stem and depth-wise layers have less than they could lose.
    names = [w.name for w in weights(model) if w.parameter.ndim > 1 and w.parameter[0].numel() >= 32]

    def row(method: str, rule: str, step: WeightMethod) -> dict[str, Any]:
        artifact = lilliput.compress(model, only(names, step, model), data)
        net = lilliput.load(artifact)
        found = outputs(net, scored)
        return {
            "method": method,
            "rule": rule,
            "parameters": numbers(artifact.weights) / base["parameters"],
            "macs": multiplications(net, one) / base["macs"],
            "latency": relative(lambda: net(one), lambda: dense(one)),
            "kl": kl(reference, found),
            "agreement": float((found.argmax(1) == reference.argmax(1)).float().mean()),
        }

    rows = []
    for cls in (Whitened, Svd):
        half, more = rules(cls, 0.5), list(rules(cls, 0.75).items())[:2]
        for name, step in (half | {f"{n}, 0.75": s for n, s in more}).items():
            method = cls.__name__.lower()
            rows.append(kept(f"efficientnet-{method}-{name}", quick, lambda m=method, n=name, s=step: row(m, n, s)))  # type: ignore[misc]

    def worst() -> dict[str, Any]:
        both = [lilliput.compress(model, only(names, c(rule="ratio"), model), data) for c in (Whitened, Svd)]
        return {"worst": calibration(model, data, *both, whole)}

    checked = kept("efficientnet-calibration", quick, worst).get("worst")
    return base | {"scored": len(scored), "calibration_error_over_plain": checked, "rows": [row for row in rows if row]}


def only(names: list[str], step: WeightMethod, model: nn.Module) -> Recipe:
    """One rule for some weights; the others are taken out before it."""
    others = [w for w in weights(model) if w.name not in names and w.kind != "vector"]
    return Recipe((*(Rule(match=w.name) for w in others), Rule(steps=(step,))))


@torch.no_grad()
def outputs(net: nn.Module, pictures: Tensor) -> Tensor:
    """All outputs, a few pictures at a time."""
    return torch.cat([net(part) for part in pictures.split(50)])


def methods() -> dict[str, WeightMethod]:
    """Those that give layers, for 3 x 3 convolutions."""
    return {
        "tucker": Tucker(rule="ratio"),
        "spatial": Spatial(rule="ratio"),
        "whitened": Whitened(rule="ratio"),
        "svd, out": Svd(rule="ratio"),
        "whitened, budget": Whitened(rule="budget"),
        "svd, budget": Svd(rule="budget"),
        "block_term, 2": BlockTerm(blocks=2),
        "spatial_own": SpatialOwn(),
        "svd, in": Svd(rule="ratio", view="in"),
        "cp, three": Cp(form="three"),
        "cp, four": Cp(),
    }


def vgg(quick: bool) -> Any:
    """A trained VGG at half of its multiplications, before and after two epochs."""
    sys.path.insert(0, str(ROOT / "examples"))
    import fashion_mnist

    torch.set_num_threads(1)
    pictures = 2_000 if quick else 50_000
    train = [batch for _, batch in zip(range(pictures // 100), fashion_mnist.Batches("train", 100))]
    model = trained_vgg(train, quick)
    example = train[0][0][:1]
    dense = lilliput.load(lilliput.compress(model, Recipe((Rule(),)), example=example))
    limit = multiplications(dense, example)

    def row(name: str, method: Any, tuned_with: int = TUNED) -> dict[str, Any]:
        begun = time.thread_time()
        recipe = halved(model, method, train[:10], limit / 2)
        artifact = lilliput.compress(model, recipe, train[:10])
        net = lilliput.load(artifact)
        found = {
            "method": name,
            "tuned": tuned_with,
            "macs": multiplications(net, example) / limit,
            "parameters": numbers(artifact.weights) / sum(p.numel() for p in model.parameters()),
            "latency": relative(lambda: net(train[0][0][:16]), lambda: dense(train[0][0][:16])),
            "before": fashion_mnist.accuracy(net),
        }
        tuned = lilliput.attach(copy.deepcopy(model), recipe, train[:10])
        torch.manual_seed(0)
        part = train[: tuned_with // 100]
        lilliput.fit(tuned.train(), part, epochs=TUNING, options=FitOptions(learning_rate=1e-3, progress=False))
        found["after"] = fashion_mnist.accuracy(lilliput.load(lilliput.pack(tuned.eval())))
        return found | {"seconds": round(time.thread_time() - begun)}

    accuracy = kept("vgg-dense", quick, lambda: {"accuracy": fashion_mnist.accuracy(model)}).get("accuracy")
    known, rows = methods(), []
    for name in LONGER:
        rows.append(kept(f"vgg-{name}-all", quick, lambda n=name: row(n, known[n], pictures)))  # type: ignore[misc]
    rows += [kept(f"vgg-{name}", quick, lambda n=name: row(n, known[n])) for name in known]  # type: ignore[misc]
    sizes = {"epochs": VGG_EPOCHS, "tuning": TUNING, "validation": 10_000}
    rows = [{"method": row["method"], "tuned": TUNED, **row} for row in rows if row]
    return {"macs": limit, "dense": accuracy, **sizes, "rows": rows}


def trained_vgg(train: list[Any], quick: bool) -> nn.Module:
    """The dense network, from the cache if it is there."""
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    model: nn.Module = lilliput.find("nets", "vgg")(
        depth=11, form="cifar", width=0.25, num_classes=10, channels=1, size=28
    ).build()
    path = cache_directory() / "networks" / f"vgg-small-{VGG_EPOCHS}.safetensors"
    if path.exists() and not quick:
        model.load_state_dict(load_file(path))
        return model.eval()
    lilliput.fit(model, train, epochs=1 if quick else VGG_EPOCHS, options=FitOptions(learning_rate=2e-3))
    if not quick:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    return model.eval()


def halved(model: nn.Module, method: Any, data: list[Any], limit: float) -> Recipe:
    """The largest ratio with which the whole net needs no more multiplications than the limit."""
    low, high = 0.02, 1.0
    for _ in range(7):
        middle = (low + high) / 2
        fits = multiplications(lilliput.load(lilliput.compress(model, spelled(method, middle), data)), data[0][0][:1])
        low, high = (middle, high) if fits <= limit else (low, middle)
    return spelled(method, low)


def spelled(method: Any, ratio: float) -> Recipe:
    """All convolutions but the first by one method; the linear layers stay."""
    return Recipe((
        Rule(match="conv1_1.*"), Rule(layers="conv*", steps=(replace(method, ratio=ratio),)), Rule()
    ))  # fmt: skip


def times(quick: bool) -> Any:
    """What the largest layers and nets take, in CPU seconds of one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    example = torch.randn(1, 3, 64 if quick else 224, 64 if quick else 224)

    def fc6() -> dict[str, Any]:
        weight = torch.randn(*((512, 3136) if quick else (4096, 25088))) * 0.01
        begun = time.thread_time()
        Svd(rank=64 if quick else 512).pack(weight)
        return {"seconds": round(time.thread_time() - begun, 1)}

    def resnet18() -> dict[str, Any]:
        resnet = lilliput.find("nets", "resnet")(depth=18).build().eval()
        # Random weights are noise, in which variational Bayes finds rank 0; planted ranks are what it is for.
        plant(resnet)
        begun = time.thread_time()
        lilliput.compress(resnet, Recipe((Rule(layers="conv*", steps=(Tucker(rule="evbmf"),)), Rule())), fold=False)
        return {"seconds": round(time.thread_time() - begun, 1)}

    def block_term(ratio: float) -> dict[str, Any]:
        net = lilliput.find("nets", "vgg")(depth=11 if quick else 16, size=len(example[0, 0])).build().eval()
        dense = lilliput.load(lilliput.compress(net, Recipe((Rule(),)), example=example))
        rule = Rule(layers="conv*", steps=(BlockTerm(blocks=4, ratio=ratio, rounds=1),))
        begun = time.thread_time()
        artifact = lilliput.compress(net, Recipe((Rule(match="conv1_1.*"), rule, Rule())), example=example)
        seconds = time.thread_time() - begun
        smaller = lilliput.load(artifact)
        return {
            "seconds": round(seconds, 1),
            "macs": multiplications(dense, example) / multiplications(smaller, example),
            "speed": round(1 / relative(lambda: smaller(example), lambda: dense(example)), 2),
        }

    found = {
        "fc6_svd_rank_512": kept("times-fc6", quick, fc6),
        "resnet18_tucker_evbmf": kept("times-resnet18", quick, resnet18),
    }
    for ratio in (0.3, 0.15):
        found[f"vgg16_block_term_{ratio}"] = kept(f"times-vgg16-{ratio}", quick, lambda r=ratio: block_term(r))  # type: ignore[misc]
    return found


@torch.no_grad()
def plant(model: nn.Module) -> None:
    """Makes each convolution a low rank and some noise, as trained ones are."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels > 8:
            matrix = module.weight.flatten(1)
            rank = max(len(matrix) // 4, 1)
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
            module.weight.copy_(
                (left[:, :rank] * values[:rank] * 8 @ right[:rank] + matrix).reshape(module.weight.shape)
            )


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Returns rows as lines of Markdown."""
    lines = ["| " + " | ".join(rows[0]).replace("_", " ") + " |", "| --- " * len(rows[0]) + "|"]
    for row in rows:
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def tables(found: dict[str, Any]) -> str:
    """Returns all parts as Markdown."""
    lines: list[str] = []
    for name in PARTS:
        if name == "times" and name in found:
            lines += [f"* {what}: {json.dumps(value)}" for what, value in found[name].items()] + [""]
        elif name in found and found[name]["rows"]:
            rest = {key: value for key, value in found[name].items() if key != "rows"}
            lines += [f"{name}: {json.dumps(rest)}", "", *table(found[name]["rows"])]
    return "\n".join(lines)


PARTS = {"times": times, "minilm": minilm, "efficientnet": efficientnet, "vgg": vgg}


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="little of everything; writes nothing")
    parser.add_argument("--finished", action="store_true", help="write what is measured already")
    options = parser.parse_args()
    global FINISHED  # noqa: PLW0603
    FINISHED = options.finished
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there is {', '.join(PARTS)}")
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    found["machine"] = machine()
    for name in options.parts or PARTS:
        print(name, flush=True)
        found[name] = PARTS[name](options.quick)
        if not options.quick:
            RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(tables(found))


if __name__ == "__main__":
    try:
        main()
    except MissingError as error:
        sys.exit(str(error))
