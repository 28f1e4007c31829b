"""BinaryNet end to end: what a trained binary network computes in floats is what integers give, bit for bit."""

import torch
from torch import nn

import lilliput
from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe
from lilliput.kernels import binary
from lilliput.quantize.binary_network import BinaryNetwork
from lilliput.train.shift_adamax import ShiftAdaMax
from lilliput.train.shift_norm import ShiftNorm


def test_weights_are_signs_and_latent_weights_stay_within_one():
    weight = torch.tensor([[0.4, 0.0], [-1.7, 2.0]])
    assert BinaryNetwork.unpack(BinaryNetwork().pack(weight)).tolist() == [[1, 1], [-1, 1]]
    assert BinaryNetwork().confined(weight).abs().max() == 1
    grad = torch.randn(2, 2)
    assert torch.equal(BinaryNetwork().gradient(weight, BinaryNetwork().pack(weight), grad)[0], grad)


def test_a_trained_network_runs_in_integers():
    """Bit planes for the pixels, XNOR and count, folded thresholds: the classes are those of the float graph."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(36, 70, bias=False), nn.BatchNorm1d(70), nn.Linear(70, 40, bias=False), nn.BatchNorm1d(40),
        nn.Linear(40, 3, bias=False),
    )  # fmt: skip
    pixels = torch.randint(0, 256, (60, 36))
    target = pixels[:, :12].float().mean(1).gt(127).long() + pixels[:, 12:24].float().mean(1).gt(127).long()
    x = pixels.float()
    lilliput.attach(model, Recipe.preset("binary-network"), example=x)
    optimizer = ShiftAdaMax(model.parameters(), lr=2.0**-6)
    losses = []
    for step in range(60):
        lilliput.advance(model, step / 60)
        loss = nn.functional.cross_entropy(model(x) / 8, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    lilliput.advance(model, 1.0)
    artifact = lilliput.pack(model)
    assert set(artifact.quantizers) == {"2", "4"}, "the first layer's inputs are pixels"
    weights = [unpack(artifact.weights[f"{layer}.weight"]) for layer in (0, 2, 4)]
    y = binary.plane_products(pixels.to(torch.uint8), weights[0])
    bits = binary.fold(model[1], 70, 36 * 255)(y)
    for weight, norm in ((weights[1], model[3]), (weights[2], None)):
        n = weight.shape[1]
        y = binary.products(binary.pack_bits(bits), binary.pack_bits(weight), n)
        if norm is not None:
            bits = binary.fold(norm, len(weight), n)(y)
    with torch.no_grad():
        assert torch.equal(lilliput.load(artifact, engine="dense")(x), model(x))
        assert torch.equal(y.float(), model(x))


def test_with_shift_norm_too():
    """The optional parts together: the network learns, and the file's graph is what was trained."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), ShiftNorm(8), nn.Flatten(), nn.Linear(128, 2, bias=False))
    x = torch.randn(16, 1, 6, 6)
    target = (x.mean((1, 2, 3)) > 0).long()
    lilliput.attach(model, Recipe.preset("binary-network"), example=x)
    optimizer = ShiftAdaMax(model.parameters(), lr=2.0**-5, glorot=True)
    losses = lilliput.fit(
        model,
        [(x, target)],
        epochs=40,
        optimizer=optimizer,
        loss=lambda out, t: nn.functional.cross_entropy(out / 16, t),
    )
    assert losses[-1] < losses[0]
    model.eval()
    with torch.no_grad():
        assert torch.equal(lilliput.load(lilliput.pack(model), engine="dense")(x), model(x))
