"""Binary activations: signs, their gradient, and XNOR-Net's K against explicit windows."""

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.recipe import Recipe, Rule
from lilliput.quantize.activations.binary import Binary
from lilliput.quantize.xnor import Xnor, block
from lilliput.train.attach import attachment
from lilliput.train.fit import FitOptions
from lilliput.train.quantizer import quantized


def test_zero_is_plus_one_and_the_gradient_passes_within_one():
    x = torch.tensor([-1.5, -1.0, -0.2, 0.0, 1.0, 1.1])
    assert Binary().forward(x, {}).tolist() == [-1, -1, -1, 1, 1, 1]
    assert Binary().gradient(x, {}, torch.ones(6))[0].tolist() == [0, 1, 1, 1, 1, 0]


def test_stochastic_signs_have_the_mean_of_the_hard_tanh():
    torch.manual_seed(0)
    for value in (-1.2, -0.6, 0.0, 0.3, 1.0):
        drawn = Binary(stochastic=True).draw(torch.full((40000,), value), {})
        assert set(drawn.tolist()) <= {-1.0, 1.0}
        assert float(drawn.mean()) == pytest.approx(max(-1, min(1, value)), abs=0.025)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (1, "same", 1, 1), (1, 2, 2, 1), (2, 1, 1, 2), ((1, 2), (0, 1), 1, 4)],
)
def test_k_is_the_mean_magnitude_of_each_window(stride, padding, dilation, groups):
    """K by unfolding |x|: the mean over channels of the group and places, padding counted as zeros."""
    torch.manual_seed(1)
    layer = nn.Conv2d(4, 8, 3, stride, padding, dilation, groups)
    x = torch.randn(2, 4, 7, 6)
    pads = layer._reversed_padding_repeated_twice
    padded = nn.functional.pad(x.abs(), pads)
    steps = layer.stride
    gaps = layer.dilation
    out = Binary(scaled=True).factor(x, layer).expand(layer(x).shape)
    for row in range(out.shape[2]):
        for column in range(out.shape[3]):
            top, left = row * steps[0], column * steps[1]
            window = padded[:, :, top : top + 2 * gaps[0] + 1 : gaps[0], left : left + 2 * gaps[1] + 1 : gaps[1]]
            for channel in range(8):
                group = channel // (8 // groups)
                own = window[:, group * 4 // groups : (group + 1) * 4 // groups]
                assert torch.allclose(out[:, channel, row, column], own.mean((1, 2, 3)), atol=1e-6)


def test_an_xnor_layer_is_the_paper_s_product():
    """(sign(I) * sign(W)) K a + bias, with everything written out."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)).eval()
    x = torch.randn(2, 3, 6, 6)
    recipe = Recipe((Rule(steps=(Xnor(),), activations=Binary(scaled=True)),))
    lilliput.attach(model, recipe, example=x)
    with torch.no_grad():
        seen = model(x)
        weight = Xnor().confined(model[0].parametrizations.weight.original)
        scale = weight.abs().mean((1, 2, 3))
        sign = torch.where(x >= 0, 1.0, -1.0)
        whole = nn.functional.conv2d(sign.double(), torch.where(weight >= 0, 1.0, -1.0).double(), padding=1)
        k = nn.functional.avg_pool2d(x.abs().mean(1, keepdim=True), 3, 1, 1)
        expected = whole * k * scale[:, None, None] + model[0].bias[:, None, None]
    assert torch.allclose(seen.double(), expected, atol=1e-5)
    artifact = lilliput.pack(model)
    assert torch.equal(lilliput.load(artifact, engine="dense")(x), seen)
    assert torch.equal(lilliput.load(artifact, into=nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)))(x), seen)


def test_the_gradient_reaches_x_through_k():
    """K is no constant: with it the input's gradient isn't the plain binary one."""
    torch.manual_seed(3)
    grads = []
    for scaled in (False, True):
        model = nn.Sequential(nn.Linear(6, 2, bias=False))
        nn.init.constant_(model[0].weight, 0.5)
        lilliput.attach(model, Recipe((Rule(activations=Binary(scaled=scaled)),)))
        x = torch.linspace(0.1, 0.9, 6)[None].requires_grad_()
        model(x).sum().backward()
        grads.append(x.grad)
    k = float(torch.linspace(0.1, 0.9, 6).mean())
    # y = 2 * 3 K: dy/dx_j = 2 (0.5 K + 3 / 6) by the product rule and the straight-through estimator
    assert torch.allclose(grads[0], torch.full((1, 6), 1.0))
    assert torch.allclose(grads[1], torch.full((1, 6), 2 * (0.5 * k + 0.5)))


def test_layers_without_k_are_left_with_a_note():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.fc = nn.LSTM(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.rnn(x)[0])

    model = lilliput.attach(Net(), Recipe((Rule(activations=Binary(scaled=True)),)))
    assert set(quantized(model)) == {"fc"}
    assert "scaled needs a linear layer" in attachment(model).notes["rnn.weight_ih_l0"]


def test_a_network_of_xnor_blocks_trains_and_is_saved():
    """The preset: first and last layer as they are, K in between; the loss falls, the file's graph is what was seen."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), block(8, 8, 3, padding=1, pool=2), block(8, 8, 3, padding=1), nn.Flatten(),
        nn.Linear(8 * 9, 2),
    )  # fmt: skip
    x = torch.randn(32, 1, 6, 6)
    target = (x[:, :, :3].mean((1, 2, 3)) > x[:, :, 3:].mean((1, 2, 3))).long()
    lilliput.attach(model, Recipe.preset("xnor"), example=x)
    assert set(quantized(model)) == {"1.1", "2.1"}
    losses = lilliput.fit(model, [(x, target)], epochs=30, options=FitOptions(learning_rate=0.02))
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    with torch.no_grad():
        assert torch.equal(lilliput.load(lilliput.pack(model), engine="dense")(x), model(x))
