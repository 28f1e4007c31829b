"""How the benchmarks score: rank correlation, pooling of embeddings, and the probe."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import real_models


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=20))
def test_spearman_is_scipys_with_ties(pairs):
    first, second = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    if len(first.unique()) > 1 and len(second.unique()) > 1:
        assert real_models.spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)


def tokenize(texts, **_):
    length = max(len(text) for text in texts)
    ids = torch.tensor([[ord(letter) for letter in text.ljust(length)] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


def states(input_ids, attention_mask):
    """One hidden state a token, (1, letter); what the mask hides is wild."""
    hidden = torch.stack([torch.ones_like(input_ids), input_ids], -1).float()
    return torch.where(attention_mask.unsqueeze(-1) > 0, hidden, torch.tensor(1e6))


@pytest.mark.parametrize(
    "form", [lambda hidden: hidden, lambda hidden: (hidden, 0), lambda hidden: {"last_hidden_state": hidden}]
)
def test_embed_takes_the_mean_of_unmasked_states_in_order(form):
    texts = ["b", "abc", "aaaa", "c"]
    result = real_models.embed(lambda **tokens: form(states(**tokens)), tokenize, texts, batch=3)
    means = torch.tensor([[1, 98.0], [1, 98.0], [1, 97.0], [1, 99.0]])
    torch.testing.assert_close(result, means / means.norm(dim=1, keepdim=True))


def test_logistic_fit_is_at_the_minimum():
    torch.manual_seed(0)
    inputs = torch.randn(80, 4, dtype=torch.float64)
    classes = (inputs[:, 0] + torch.randn(80, dtype=torch.float64) > 0).double()
    weights = real_models.logistic_fit(inputs, classes, penalty=0.5)
    residual = torch.sigmoid(inputs @ weights[:-1] + weights[-1]) - classes
    assert torch.linalg.norm(inputs.T @ residual + 0.5 * weights[:-1]) < 1e-4
    assert abs(float(residual.sum())) < 1e-4


def test_probe_finds_a_class_that_is_there_and_none_that_is_not():
    torch.manual_seed(0)
    embeddings = torch.randn(600, 8)
    mean, deviation = real_models.sentiment_probe(embeddings, (embeddings[:, 3] > 0).long())
    assert mean > 0.97
    assert deviation < 0.03
    assert 0.4 < real_models.sentiment_probe(embeddings, torch.randint(0, 2, (600,)))[0] < 0.6


def test_efficientnet_reaches_its_reference_score(efficientnet_lite0, imagenet_pictures):
    images, labels = imagenet_pictures
    assert sum(parameter.numel() for parameter in efficientnet_lite0.parameters()) == 4_652_008
    with torch.no_grad():
        best = efficientnet_lite0(images).topk(5).indices
    hits = best == labels[:, None]
    assert int(hits[:, 0].sum()) == 17
    assert int(hits.any(1).sum()) == 20
