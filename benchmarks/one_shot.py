"""One-shot sparsity of MiniLM, without retraining: how far held-out sentence embeddings move.

    python benchmarks/one_shot.py                  # prints the table, writes results/one_shot.json
    python benchmarks/one_shot.py --methods obc    # one method alone

All linear layers of the encoder (10.6 M of 22.7 M weights) are pruned, calibrated on 256 sentences that aren't scored.
"""

import argparse
import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lilliput
from lilliput.core.layers import weights
from lilliput.prune.sparse import Sparse
from real_data import MissingError, sentences
from real_models import embed, minilm, sentiment_probe, word_similarity

CALIBRATION = 256
BATCH = 16
LAYERS = {"match": "encoder.*", "layers": "linear"}


def steps(name: str, sparsity: float, pattern: str) -> Sparse:
    """Returns the pruning step of a row of the table."""
    method, _, plain = name.partition(" ")
    options = {"refit": 0} if plain else {}
    step: Sparse = lilliput.find("prune", method)(sparsity=sparsity, pattern=pattern, **options)
    return step


def batches(tokenizer: Any, texts: list[str]) -> list[dict[str, Any]]:
    """Tokenizes calibration sentences, those of like length together, so that hardly any padding is seen."""
    ordered = sorted(texts, key=len)
    return [
        dict(tokenizer(ordered[i : i + BATCH], padding=True, truncation=True, max_length=256, return_tensors="pt"))
        for i in range(0, len(ordered), BATCH)
    ]


@torch.no_grad()
def pruned(model: nn.Module, step: Sparse, data: list[dict[str, Any]]) -> nn.Module:
    """Returns a copy of the model with its linear layers pruned."""
    artifact = lilliput.compress(
        model, lilliput.Recipe((lilliput.Rule(steps=(step,), **LAYERS),)), data, fold=False, remove_dead=False
    )
    result = copy.deepcopy(model)
    for weight in weights(result):
        weight.parameter.copy_(lilliput.unpack(artifact.weights[weight.name]))
    return result


def measured(model: nn.Module, tokenizer: Any, reference: Any, texts: list[str], classes: Any) -> dict[str, Any]:
    """Scores a model on sentences and word pairs."""
    found = embed(model, tokenizer, texts)
    distance = 1 - (found * reference).sum(1)
    mean, deviation = sentiment_probe(found, classes)
    return {
        "distance": float(distance.mean()),
        "distance_error": float(distance.std() / len(texts) ** 0.5),
        "sentiment": mean,
        "sentiment_deviation": deviation,
        "wordsim353": word_similarity(model, tokenizer),
    }


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=["magnitude", "wanda", "obc published", "obc"])
    parser.add_argument("--sparsities", nargs="*", default=["0.5", "2:4"])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "one_shot.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    model, tokenizer = minilm()
    texts, labels = sentences()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1)).tolist()
    data = batches(tokenizer, [texts[i] for i in order[:CALIBRATION]])
    scored = [texts[i] for i in order[CALIBRATION:]]
    classes = torch.tensor([labels[i] for i in order[CALIBRATION:]])
    reference = embed(model, tokenizer, scored)
    rows = [{"method": "dense", "sparsity": "0", **measured(model, tokenizer, reference, scored, classes)}]
    for name in options.methods:
        for sparsity in options.sparsities:
            part, pattern = (0.5, sparsity) if ":" in sparsity else (float(sparsity), "unstructured")
            begun = time.perf_counter()
            smaller = pruned(model, steps(name, part, pattern), data)
            seconds = time.perf_counter() - begun
            row = {"method": name, "sparsity": sparsity, "seconds": seconds}
            rows.append(row | measured(smaller, tokenizer, reference, scored, classes))
            print(json.dumps(rows[-1]), flush=True)
    result = {"calibration": CALIBRATION, "scored": len(scored), "word_pairs": 353, "rows": rows}
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except MissingError as error:
        sys.exit(str(error))
