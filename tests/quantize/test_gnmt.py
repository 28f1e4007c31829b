"""GNMT: rows of 8 bits, cells within 16 bits and their bound, near to the plain LSTM, and through the file."""

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import ModelError
from lilliput.core.recipe import Recipe, Rule
from lilliput.quantize.gnmt import TOP, ClippedLSTM, Gnmt, clipped, levels, sixteen


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = ClippedLSTM(3, 6, batch_first=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return clipped(self.fc(self.rnn(x)[0][:, -1]))


def test_rows_are_those_of_the_paper():
    """round(w / s * 127), s the largest magnitude of the row."""
    torch.manual_seed(0)
    weight = torch.randn(9, 14) * torch.logspace(-3, 3, 9)[:, None]
    packed = Gnmt().pack(weight)
    largest = weight.abs().amax(1, keepdim=True)
    assert torch.equal(packed.parts["codes"].double(), torch.round(weight.double() / (largest.double() / 127)))
    assert torch.allclose(Gnmt.unpack(packed), weight, atol=float(largest.max()) / 254, rtol=0)


def test_cells_are_16_bit_integers_within_the_bound():
    torch.manual_seed(1)
    lstm = ClippedLSTM(4, 5)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.mul_(6)
        for progress in (0.0, 0.5, 1.0):
            lstm.anneal(progress)
            out, (_, c) = lstm(torch.randn(30, 7, 4) * 3)
            codes = c.double() / lstm.bound * TOP
            assert torch.allclose(codes, codes.round(), atol=2e-2)
            assert c.abs().max() <= lstm.bound
            assert out.abs().max() <= 1
    assert lstm.bound == 1
    assert c.abs().max() == 1, "the bound was reached"


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_with_a_wide_bound_it_is_the_plain_lstm(layers, batch_first):
    torch.manual_seed(2)
    plain = nn.LSTM(4, 6, layers, batch_first=batch_first)
    own = ClippedLSTM(4, 6, layers, batch_first=batch_first, start=8.0, end=8.0)
    own.load_state_dict(plain.state_dict())
    x = torch.randn(5, 5, 4)
    state = (torch.rand(layers, 5, 6) - 0.5, torch.rand(layers, 5, 6) - 0.5)
    for given in ((x,), (x, state), (x[0],)):
        one, (h, c) = plain(*given)
        two, (h2, c2) = own(*given)
        for left, right in ((one, two), (h, h2), (c, c2)):
            assert left.shape == right.shape
            assert torch.allclose(left, right, atol=2e-3)


def test_gradients_pass_where_nothing_is_clipped():
    x = torch.tensor([0.3, -1.2, 0.999, 1.0], requires_grad=True)
    out = sixteen(x, 1.0)
    out.sum().backward()
    assert x.grad.tolist() == [1, 0, 1, 1]
    assert torch.equal(out.detach(), levels(x.detach(), 1.0))
    assert float((out - x.clamp(-1, 1)).detach().abs().max()) <= 0.5 / TOP + 1e-7


def test_training_anneals_and_the_file_holds_what_was_seen():
    torch.manual_seed(3)
    model, x = Net(), torch.randn(32, 2, 3)
    target = (x.sum((1, 2)) > 0).long()
    lilliput.attach(model, Recipe((Rule(steps=(Gnmt(),)),)), example=x)
    lilliput.advance(model, 0.0)
    assert model.rnn.bound == 8
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = lilliput.fit(model, [(x, target)], epochs=20, optimizer=optimizer)
    assert losses[-1] < 0.7 * losses[0]
    assert model.rnn.bound == 1
    model.eval()
    artifact = lilliput.pack(model)
    assert artifact.weights["rnn.weight_hh_l0"].method == "quantize/uniform"
    with torch.no_grad():
        assert torch.equal(lilliput.load(artifact, engine="dense")(x), model(x))
        longer = torch.randn(4, 9, 3)
        assert torch.equal(lilliput.load(artifact, into=Net())(longer), model(longer))


def test_bad_settings_and_inputs():
    with pytest.raises(ModelError, match="bounds"):
        ClippedLSTM(2, 2, start=1.0, end=2.0)
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2)])
    with pytest.raises(ModelError, match="packed sequence"):
        ClippedLSTM(2, 2)(packed)
