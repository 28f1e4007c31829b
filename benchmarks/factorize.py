"""Factorizations and rank rules beside one another: error, parameters, multiplications and measured latency.

    python benchmarks/factorize.py                    # all four parts; writes results/factorize.json
    python benchmarks/factorize.py minilm vgg         # some of them: times, minilm, efficientnet, vgg
    python benchmarks/factorize.py vgg --quick        # few pictures; writes nothing

`minilm`: the linear layers of all-MiniLM-L6-v2's encoder, so that the whole has a quarter fewer parameters; calibrated
on 256 sentences, 1 - cosine of the embeddings of 2,744 others. `efficientnet`: the pointwise convolutions and the last
layer of EfficientNet-Lite0; calibrated on crops of ten labelled pictures, scored on crops of ten others, without
training. `vgg`: a VGG-11 a quarter as wide, trained on Fashion-MNIST, factorized to half of its multiplications by each
method that gives layers, before and after two epochs of training. `times`: VGG-16's fc6 by random projections to rank
512, ResNet-18 by Tucker with EVBMF, and VGG-16 by block terms beside its dense self; random weights. Latency is that of
the classless network on one thread, dense and factorized in turn, the ratio of medians; `times` takes two threads.
"""

import argparse
import copy
import json
import platform
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
from lilliput.core.packed import leaves
from lilliput.core.recipe import Recipe, Rule
from lilliput.factorize.block_term import BlockTerm
from lilliput.factorize.cp import Cp
from lilliput.factorize.spatial import Spatial
from lilliput.factorize.spatial_own import SpatialOwn
from lilliput.factorize.svd import Svd
from lilliput.factorize.tucker import Tucker
from lilliput.factorize.whitened import Whitened
from lilliput.observe.divergence import kl
from lilliput.train.fit import FitOptions
from real_data import MissingError, cache_directory

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "factorize.json"
ROUNDS = 9
VGG_EPOCHS, TUNING = 6, 2


def rules(cls: Any, ratio: float) -> dict[str, WeightMethod]:
    """Every rank rule of the two matrix factorizations; the first two hold the same part of the numbers."""
    made = {"ratio": cls(rule="ratio", ratio=ratio), "budget": cls(rule="budget", ratio=ratio)}
    energies = {f"energy {energy}": cls(rule="energy", energy=energy) for energy in (0.9, 0.99)}
    return made | energies | {"evbmf": cls(rule="evbmf")}


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
    """Median seconds of each call, one after the other in each round."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                found[name].append(time.perf_counter() - start)
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
    scored = [texts[i] for i in order[CALIBRATION:]][: 100 if quick else None]
    reference = embed(model, tokenizer, scored)
    total = sum(parameter.numel() for parameter in model.parameters())
    inner = [w for w in weights(model) if w.kind == "linear" and w.name.startswith("encoder")]
    held = sum(weight.parameter.numel() for weight in inner)
    ratio = (held - 0.25 * total) / held
    tokens = dict(tokenizer(scored[:16], padding=True, return_tensors="pt"))
    dense = lilliput.load(lilliput.compress(model, Recipe((Rule(),)), data, fold=False, remove_dead=False))
    rows = []
    for cls in (Svd, Whitened):
        for name, step in rules(cls, ratio).items():
            begun = time.perf_counter()
            recipe = Recipe((Rule(steps=(step,), **LAYERS), Rule()))
            artifact = lilliput.compress(model, recipe, data, fold=False, remove_dead=False)
            seconds = time.perf_counter() - begun
            net = lilliput.load(artifact)
            distance = 1 - (embed(net, tokenizer, scored) * reference).sum(1)
            rows.append({
                "method": cls.__name__.lower(),
                "rule": name,
                "fewer_parameters": 1 - numbers(artifact.weights) / total,
                "distance": float(distance.mean()),
                "distance_error": float(distance.std() / len(scored) ** 0.5),
                "wordsim353": word_similarity(net, tokenizer),
                "latency": relative(lambda net=net: net(**tokens), lambda: dense(**tokens)),
                "seconds": round(seconds, 1),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return {
        "scored": len(scored),
        "word_pairs": 353,
        "dense_wordsim353": word_similarity(model, tokenizer),
        "rows": rows,
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
    rows = []
    for cls in (Svd, Whitened):
        for name, step in (rules(cls, 0.5) | {f"{n}, 0.75": s for n, s in list(rules(cls, 0.75).items())[:2]}).items():
            # Stem and depth-wise layers have less than they could lose.
            names = [w.name for w in weights(model) if w.parameter.ndim > 1 and w.parameter[0].numel() >= 32]
            artifact = lilliput.compress(model, only(names, step, model), data)
            net = lilliput.load(artifact)
            found = outputs(net, scored)
            rows.append({
                "method": cls.__name__.lower(),
                "rule": name,
                "parameters": numbers(artifact.weights) / base["parameters"],
                "macs": multiplications(net, one) / base["macs"],
                "latency": relative(lambda net=net: net(one), lambda: dense(one)),
                "kl": kl(reference, found),
                "agreement": float((found.argmax(1) == reference.argmax(1)).float().mean()),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return base | {"scored": len(scored), "rows": rows}


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
        "svd, out": Svd(rule="ratio"),
        "svd, in": Svd(rule="ratio", view="in"),
        "svd, budget": Svd(rule="budget"),
        "whitened": Whitened(rule="ratio"),
        "whitened, budget": Whitened(rule="budget"),
        "spatial": Spatial(rule="ratio"),
        "spatial_own": SpatialOwn(),
        "tucker": Tucker(rule="ratio"),
        "block_term, 2": BlockTerm(blocks=2),
        "cp, four": Cp(),
        "cp, three": Cp(form="three"),
    }


def vgg(quick: bool) -> Any:
    """A trained VGG at half of its multiplications, before and after two epochs."""
    sys.path.insert(0, str(ROOT / "examples"))
    import fashion_mnist

    torch.set_num_threads(1)
    pictures = 2_000 if quick else 50_000
    train = [batch for _, batch in zip(range(pictures // 100), fashion_mnist.Batches("train", 100))]
    held = fashion_mnist.validation()
    model = trained_vgg(train, quick)
    example = train[0][0][:1]
    dense = lilliput.load(lilliput.compress(model, Recipe((Rule(),)), example=example))
    limit = multiplications(dense, example)
    rows = [{"method": "dense", "accuracy": fashion_mnist.accuracy(model, held), "macs": 1.0}]
    print(rows[-1], flush=True)
    for name, method in methods().items():
        begun = time.perf_counter()
        recipe = halved(model, method, train[:10], limit / 2)
        artifact = lilliput.compress(model, recipe, train[:10])
        net = lilliput.load(artifact)
        row = {
            "method": name,
            "macs": multiplications(net, example) / limit,
            "parameters": numbers(artifact.weights) / sum(p.numel() for p in model.parameters()),
            "latency": relative(lambda net=net: net(train[0][0][:16]), lambda: dense(train[0][0][:16])),
            "before": fashion_mnist.accuracy(net, held),
        }
        tuned = lilliput.attach(copy.deepcopy(model), recipe, train[:10])
        torch.manual_seed(0)
        lilliput.fit(tuned.train(), train, epochs=TUNING, options=FitOptions(learning_rate=1e-3, progress=False))
        row["after"] = fashion_mnist.accuracy(lilliput.load(lilliput.pack(tuned.eval())), held)
        rows.append(row | {"seconds": round(time.perf_counter() - begun)})
        print(rows[-1], flush=True)
    return {"macs": limit, "epochs": VGG_EPOCHS, "tuning": TUNING, "validation": 10_000, "rows": rows}


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
    """What the largest layers and nets take."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    size = (512, 3136) if quick else (4096, 25088)
    weight = torch.randn(*size) * 0.01
    begun = time.perf_counter()
    Svd(rank=64 if quick else 512).pack(weight)
    found = {"fc6_svd_rank_512_seconds": round(time.perf_counter() - begun, 1)}
    print(found, flush=True)
    example = torch.randn(1, 3, 64 if quick else 224, 64 if quick else 224)
    resnet = lilliput.find("nets", "resnet")(depth=18).build().eval()
    begun = time.perf_counter()
    # Random weights are noise, in which variational Bayes finds rank 0; planted ranks are what it is for.
    plant(resnet)
    lilliput.compress(resnet, Recipe((Rule(layers="conv*", steps=(Tucker(rule="evbmf"),)), Rule())), fold=False)
    found["resnet18_tucker_evbmf_seconds"] = round(time.perf_counter() - begun, 1)
    print(found, flush=True)
    net = lilliput.find("nets", "vgg")(depth=11 if quick else 16).build().eval()
    torch.set_num_threads(1)
    dense = lilliput.load(lilliput.compress(net, Recipe((Rule(),)), example=example))
    macs = multiplications(dense, example)
    for ratio in (0.3, 0.15):
        rule = Rule(layers="conv*", steps=(BlockTerm(blocks=4, ratio=ratio, rounds=1),))
        begun = time.perf_counter()
        smaller = lilliput.load(
            lilliput.compress(net, Recipe((Rule(match="conv1_1.*"), rule, Rule())), example=example)
        )
        row = {"seconds": round(time.perf_counter() - begun, 1), "macs": macs / multiplications(smaller, example)}
        found[f"vgg16_block_term_{ratio}"] = row | {
            "speed": round(1 / relative(lambda net=smaller: net(example), lambda: dense(example)), 2)
        }
        print(found, flush=True)
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


PARTS = {"times": times, "minilm": minilm, "efficientnet": efficientnet, "vgg": vgg}


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="little of everything; writes nothing")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there is {', '.join(PARTS)}")
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result["machine"] = {"processor": platform.machine(), "torch": torch.__version__}
    for name in options.parts or PARTS:
        print(name, flush=True)
        result[name] = PARTS[name](options.quick)
        if not options.quick:
            RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except MissingError as error:
        sys.exit(str(error))
