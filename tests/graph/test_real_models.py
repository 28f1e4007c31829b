"""Real networks with their real weights: EfficientNet-Lite0 and MiniLM."""

import copy
import json
import zlib

import pytest
import torch

import lilliput
from lilliput.graph.ir import Graph
from lilliput.graph.run import GraphModule
from lilliput.graph.trace import trace


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_efficientnet_lite0(efficientnet_lite0) -> None:
    model = efficientnet_lite0
    graph, constants = trace(model, torch.rand(1, 3, 224, 224))
    text = json.dumps(graph.to_json(), separators=(",", ":"))
    assert len(zlib.compress(text.encode(), 9)) < 2500
    assert graph.open == "batch"
    net = GraphModule(Graph.from_json(json.loads(text)), model.state_dict() | constants)
    assert net.state_dict().keys() == model.state_dict().keys()
    x = torch.rand(3, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-5, atol=1e-5)


TEXTS = ["A longer sentence, with more words than it was traced with, to be sure", "short", ""]


def same_on_other_sentences(net, model, tokenizer) -> None:
    for batch in (TEXTS, TEXTS[:1], TEXTS[1:]):
        x = tokenizer(batch, return_tensors="pt", padding=True)
        with torch.no_grad():
            expected, got = model(**x), net(**x)
        assert type(got).__name__ == "Record"
        torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got["pooler_output"], expected.pooler_output, rtol=1e-5, atol=1e-5)


def test_minilm(minilm) -> None:
    model, tokenizer = minilm
    graph, constants = trace(model, dict(tokenizer(["Hello, small world"], return_tensors="pt")))
    net = GraphModule(Graph.from_json(json.loads(json.dumps(graph.to_json()))), model.state_dict() | constants)
    same_on_other_sentences(net, model, tokenizer)


def test_minilm_through_a_file(minilm, tmp_path) -> None:
    """Other batches and sequences than it was traced with; the classless network is the unpacked module."""
    model, tokenizer = minilm
    example = dict(tokenizer(["Hello, small world"], return_tensors="pt"))
    path = tmp_path / "minilm.safetensors"
    size = lilliput.compress(model, lilliput.Recipe.preset("int8"), example=example).save(path)
    assert size < 0.27 * sum(4 * p.numel() for p in model.parameters())
    module = lilliput.load(path, into=copy.deepcopy(model))
    same_on_other_sentences(lilliput.load(path), module, tokenizer)
    assert not torch.equal(module.encoder.layer[0].output.dense.weight, model.encoder.layer[0].output.dense.weight)
