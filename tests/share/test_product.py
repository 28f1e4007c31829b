"""Product quantization: look-ups, exact blocks of the correction, all codes of tiny cases, a whole network."""

import itertools

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import MethodError, NotWorthwhile
from lilliput.core.packed import unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.core.stats import Stats
from lilliput.observe.collect import collect
from lilliput.observe.inputs import Gram
from lilliput.share.product import Product
from lilliput.solve.sub_spaces import SubSpaces, decoded
from lilliput.solve.vector_kmeans import clustered, nearest
from lilliput.testing.spread import gaussian


def correlated(columns, seed=0, groups=1):
    mixed = gaussian(groups, 3 * columns, columns, seed=seed).double() @ gaussian(columns, columns, seed=1).double()
    return mixed.transpose(1, 2) @ mixed * 100


def plain(**settings):
    return Product(correct=False, force=True, **settings)


@pytest.mark.parametrize("inputs", [12, 13, 2])
def test_looking_up_is_multiplying(inputs):
    packed = plain(k=5).pack(gaussian(20, inputs).double())
    x = gaussian(3, 4, inputs, seed=1).double()
    assert torch.allclose(Product.multiply(packed, x), x @ unpack(packed).T, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"dilation": (2, 1), "padding": (0, 3)}])
def test_looking_up_is_convolving(settings):
    layer = nn.Conv2d(10, 7, (3, 2), **settings).double()
    packed = plain(k=9, width=4).pack(layer.weight.detach())
    x = gaussian(2, 10, 9, 8, seed=1).double()
    with torch.no_grad():
        layer.weight.copy_(unpack(packed))
        assert torch.allclose(Product.convolve(packed, layer, x), layer(x), rtol=1e-12, atol=1e-14)


def test_what_cannot_be_looked_up_is_refused():
    packed = plain().pack(gaussian(6, 4, 3, 3))
    with pytest.raises(MethodError, match="use convolve"):
        Product.multiply(packed, torch.ones(1, 4))
    with pytest.raises(MethodError, match="one group"):
        Product.convolve(packed, nn.Conv2d(4, 6, 3, padding="same"), torch.ones(1, 4, 5, 5))


def test_as_many_codewords_as_vectors_are_exact():
    w = gaussian(9, 12)
    assert torch.equal(unpack(plain(width=12, k=9).pack(w)), w)
    repeated = w[:3].repeat(5, 1)
    assert torch.equal(unpack(plain(width=4, k=3).pack(repeated)), repeated)


def test_k_means_goes_down_and_ends_at_means_of_nearest_points():
    points = gaussian(2, 200, 3).double()
    errors = []
    for rounds in range(12):
        centroids, codes = clustered(points, 8, rounds=rounds)
        errors.append(float((points - centroids.gather(1, codes[:, :, None].expand(-1, -1, 3))).square().sum()))
    assert errors == sorted(errors, reverse=True)
    centroids, codes = clustered(points, 8, rounds=500)
    brute = (points[:, :, None] - centroids[:, None]).square().sum(3).argmin(2)
    assert torch.equal(codes, brute)
    assert torch.equal(nearest(points, centroids), brute)
    for one in range(8):
        assert torch.allclose(centroids[1, one], points[1][codes[1] == one].mean(0))


def state(groups=1, rows=6, channels=5, places=1, k=4, seed=0):
    w = gaussian(groups, rows, channels * places, seed=seed).double()
    gram, runs = correlated(channels * places, seed, groups), -(-channels // 2)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(k, (groups, rows, runs, places), generator=generator)
    return w, SubSpaces.of(w, gram, gaussian(runs, k, 2, seed=seed + 1).double(), codes)


def responses(w, fit):
    rest = w - decoded(fit.codebook, fit.codes, w.shape[2] // fit.codes.shape[3])
    return float(torch.einsum("gni,gij,gnj->", rest, fit.gram, rest))


@pytest.mark.parametrize("case", [{}, {"places": 4}, {"groups": 3, "places": 2}, {"groups": 2}], ids=str)
def test_every_step_is_the_best_of_its_block(case):
    w, fit = state(**case)
    before = responses(w, fit)
    for _ in range(3):
        for run in range(fit.codes.shape[2]):
            fit.move_codebook(run)
            now = responses(w, fit)
            assert fit.objective == pytest.approx(now, rel=1e-9)
            assert now <= before + 1e-12
            for step in gaussian(5, *fit.codebook[run].shape, seed=run).double() * 0.1:  # no other codebook is better
                kept = fit.codebook.clone()
                fit.codebook[run] += step
                assert responses(w, fit) >= now - 1e-9
                fit.codebook = kept
            before = now
            for place in range(fit.codes.shape[3]):
                fit.move_codes(run, place)
                now = responses(w, fit)
                assert now <= before + 1e-12
                before = now
                for group, row in itertools.product(range(w.shape[0]), range(w.shape[1])):
                    kept = int(fit.codes[group, row, run, place])
                    for other in range(fit.codebook.shape[1]):
                        fit.codes[group, row, run, place] = other
                        assert responses(w, fit) >= now - 1e-9
                    fit.codes[group, row, run, place] = kept


@pytest.mark.parametrize("seed", range(3))
def test_all_codes_of_three_outputs_and_two_codewords(seed):
    """One run: the best of all assignments, each with its best codebook; the correction isn't below it, and near."""
    w, fit = state(rows=3, channels=2, k=2, seed=seed)
    best = float("inf")
    for codes in itertools.product(range(2), repeat=3):
        fit.codes[0, :, 0, 0] = torch.tensor(codes)
        means = [w[0][torch.tensor(codes) == c].mean(0) if c in codes else w[0, 0] for c in range(2)]
        fit.codebook[0] = torch.stack(means)  # H is the same for all outputs, so that the best codeword is the mean
        best = min(best, responses(w, fit))
    stats = Stats({"gram": Gram(fit.gram, 1)})
    packed = Product(width=2, k=2, damp=0.0, force=True).pack(w[0], stats)
    rest = w[0] - unpack(packed)
    found = float(((rest @ fit.gram[0]) * rest).sum())
    assert best * (1 - 1e-6) <= found <= 2 * best + 1e-12


LAYERS = [nn.Linear(20, 30), nn.Conv2d(6, 16, 3, padding=1), nn.Conv2d(8, 16, 3, groups=2), nn.Conv1d(6, 20, 3)]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_corrected_responses_are_nearer(layer):
    channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
    window = [9] * (layer.weight.ndim - 2)
    source = torch.Generator().manual_seed(0)
    x = torch.randn(40, channels, *window, generator=source) * torch.rand(
        channels, *[1] * len(window), generator=source
    )
    x = x + x.roll(1, 1)
    stats = collect(layer, {"weight": Product.needs}, [x])["weight"]
    expected, w, errors = layer(x).detach(), layer.weight.detach().clone(), []
    for correct in (False, True):
        packed = Product(width=4, k=8, correct=correct, damp=0.0, force=True).pack(w, stats)
        with torch.no_grad():
            layer.weight.copy_(unpack(packed))
            errors.append(float((layer(x) - expected).square().sum()))
            layer.weight.copy_(w)
    assert errors[1] < 0.9 * errors[0]


def test_through_compress_and_the_file(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 200)).eval()
    recipe = Recipe((Rule(steps=(Product(width=4, k=16),)),))
    artifact = lilliput.compress(model, recipe, [torch.randn(8, 3, 6, 6)])
    assert artifact.save(tmp_path / "net.safetensors") < 0.2 * 4 * sum(p.numel() for p in model.parameters())
    x = torch.randn(4, 3, 6, 6)
    y = lilliput.load(tmp_path / "net.safetensors")(x).detach()
    z = model(x).detach()
    assert float((y - z).square().mean() / z.square().mean()) < 0.5
    with pytest.raises(MethodError, match="needs data"):
        lilliput.compress(model, recipe, example=x)


def test_refusals():
    with pytest.raises(MethodError, match="another layer"):
        Product(k=2, width=2, force=True).pack(gaussian(8, 6), Stats({"gram": Gram(torch.eye(4)[None], 1)}))
    with pytest.raises(NotWorthwhile, match="bits"):
        Product(correct=False).pack(gaussian(8, 6))
    with pytest.raises(MethodError, match="two or more axes"):
        Product(correct=False).pack(gaussian(8))
    with pytest.raises(NotWorthwhile, match="can't be cut"):
        Product.take(plain().pack(gaussian(8, 6)), 1, torch.tensor([0]))
    with pytest.raises(MethodError, match="width = -1"):
        Product(width=-1)
