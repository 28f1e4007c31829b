"""Recurrent layers whose weights don't fit are refused before torch's kernels, which trust them, are called."""

import pytest
import torch
from torch import nn

from lilliput.core.errors import FileError
from lilliput.graph.run import GraphModule
from lilliput.graph.trace import trace

KINDS = {
    "lstm": lambda: nn.LSTM(6, 3),
    "deep": lambda: nn.LSTM(6, 3, num_layers=2, bidirectional=True, batch_first=True),
    "projected": lambda: nn.LSTM(6, 5, num_layers=2, proj_size=2, bidirectional=True),
    "no bias": lambda: nn.LSTM(6, 3, bias=False),
    "gru": lambda: nn.GRU(6, 3, num_layers=2),
    "tanh": lambda: nn.RNN(6, 3, bidirectional=True),
    "relu": lambda: nn.RNN(6, 3, nonlinearity="relu", batch_first=True),
}


def traced(kind):
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    graph, constants = trace(model, torch.rand(4, 2, 6))
    return model, graph, model.state_dict() | constants


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_runs_at_other_sizes(kind):
    model, graph, tensors = traced(kind)
    x = torch.rand(4, 2, 6)
    with torch.no_grad():
        torch.testing.assert_close(GraphModule(graph, tensors)(x)[0], model(x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_of_another_size_is_refused(kind):
    _, graph, tensors = traced(kind)
    names = [name for name in tensors if name.startswith(("weight", "bias"))]
    assert len(names) >= 2
    for name in names:
        whole = tensors[name]
        for other in (whole[:-1], whole[:0], whole[..., :-1], torch.cat([whole, whole]), whole[None], whole.sum()):
            with pytest.raises(FileError, match="can't be run"):
                GraphModule(graph, tensors | {name: other})(torch.rand(4, 2, 6))


@pytest.mark.parametrize("shape", [(4, 2, 5), (4, 2, 7), (0, 2, 6), (4, 0, 6), (2, 6), (1, 4, 2, 6)])
def test_inputs_of_other_sizes_are_refused(shape):
    from lilliput.graph.recurrent import guarded

    model = nn.LSTM(6, 3).eval()
    states = [torch.zeros(1, 2, 3)] * 2
    call = guarded("aten.lstm.input", torch.ops.aten.lstm.input)
    rest = (True, 1, 0.0, False, False, False)
    assert call(torch.rand(4, 2, 6), states, model._flat_weights, *rest)[0].shape == (4, 2, 3)
    with pytest.raises(ValueError, match="input"):
        call(torch.rand(shape), states, model._flat_weights, *rest)
    with pytest.raises(ValueError, match="don't fit"):
        call(torch.rand(4, 2, 6), states, [weight[:0] for weight in model._flat_weights], *rest)
