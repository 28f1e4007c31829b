"""HashedNets: the hash by its specification, even buckets, gradients, unbiased products, the file."""

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import MethodError
from lilliput.core.packed import Packed, finished, unpack
from lilliput.core.recipe import Recipe, Rule
from lilliput.share.hashed import Hashed, coded
from lilliput.solve.hashing import xxh32
from lilliput.testing.spread import gaussian
from lilliput.train.attach import attach, new_parameters, packed_weights

P1, P2, P3, P4, P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393


def reference(data, seed=0):
    """XXH32 by its specification in Python's own integers, for fewer than 16 bytes."""

    def rotated(x, r):
        x &= 0xFFFFFFFF
        return (x << r | x >> (32 - r)) & 0xFFFFFFFF

    value = seed + P5 + len(data)
    while len(data) >= 4:
        value = rotated(value + int.from_bytes(data[:4], "little") * P3, 17) * P4
        data = data[4:]
    for byte in data:
        value = rotated(value + byte * P5, 11) * P1
    value &= 0xFFFFFFFF
    value = (value ^ value >> 15) * P2 & 0xFFFFFFFF
    value = (value ^ value >> 13) * P3 & 0xFFFFFFFF
    return value ^ value >> 16


def test_the_reference_gives_published_values():
    assert reference(b"") == 0x02CC5D05
    assert reference(b"a") == 0x550D7456
    assert reference(b"abc") == 0x32D153FF


def test_the_hash_is_that_of_the_specification():
    numbers = [0, 1, 7, 255, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1]
    for seed in (0, 1, 2654435761, 2**32 - 1):
        first, second = torch.tensor(numbers)[:, None], torch.tensor(numbers)
        expected = [
            [reference(a.to_bytes(4, "little") + b.to_bytes(4, "little"), seed) for b in numbers] for a in numbers
        ]
        assert xxh32(first, second, seed).tolist() == expected


def test_pieces_of_a_large_weight_are_hashed_as_the_whole():
    codes = coded((700, 800), 1000, 3)
    row, column = 650, 17
    place = reference(row.to_bytes(4, "little") + column.to_bytes(4, "little"), 3) * 1000 >> 32
    assert abs(int(codes[row, column])) == place + 1


def test_buckets_and_signs_are_even():
    """Chi squared of 256 buckets, and the number of signs: within five standard deviations."""
    codes = coded((300, 400), 256, 0).flatten()
    counts = torch.bincount(codes.abs().long() - 1, minlength=256).double()
    expected = 120_000 / 256
    chi = float(((counts - expected).square() / expected).sum())
    assert abs(chi - 255) < 5 * (2 * 255) ** 0.5
    assert abs(int((codes > 0).sum()) - 60_000) < 5 * 120_000**0.5 / 2


def test_every_weight_its_own_value_and_no_sign_is_the_dense_layer():
    w = gaussian(4, 6)
    codes = torch.arange(1, 25, dtype=torch.int32).reshape(4, 6)
    packed = Packed("share/hashed", (4, 6), torch.float32, {"values": w.flatten(), "codes": codes}, {"seed": 0})
    assert torch.equal(unpack(packed), w)


def test_values_are_the_least_squares_or_a_sample():
    w = gaussian(30, 40).double()
    mean, first = Hashed(k=50).pack(w), Hashed(k=50, start="first").pack(w)
    codes = mean.parts["codes"]
    design = torch.zeros(1200, 50, dtype=torch.float64)
    design[torch.arange(1200), codes.flatten().abs().long() - 1] = codes.flatten().sign().double()
    assert torch.allclose(mean.parts["values"], torch.linalg.lstsq(design, w.reshape(-1, 1)).solution[:, 0])
    place = int((codes.flatten().abs() == 8).nonzero()[0])
    assert float(first.parts["values"][7]) == float(w.flatten()[place] * codes.flatten()[place].sign())
    # A sample keeps the variance of the initialisation; means would shrink it by the weights in a bucket.
    assert float(unpack(first).var() / w.var()) == pytest.approx(1, abs=0.4)
    assert float(unpack(mean).var() / w.var()) < 0.1


def test_the_gradient_of_a_value_is_the_signed_sum_over_its_weights():
    layer = nn.Linear(20, 10, bias=False)
    attach(layer, Recipe((Rule(steps=(Hashed(k=16, seed=5),)),)))
    (values,) = new_parameters(layer)
    g = gaussian(10, 20, seed=3)
    layer.weight.backward(g)
    codes = coded((10, 20), 16, 5)
    for k in range(16):
        here = codes.abs() == k + 1
        assert float(values.grad[k]) == pytest.approx(float((g * codes.sign())[here].sum()), abs=1e-6)


def test_inner_products_of_hashed_features_are_unbiased():
    """E over seeds of phi(a).phi(b) = a.b (feature hashing with signs), where without signs it is far off."""
    a, b = gaussian(1, 64).double().flatten() * 10, gaussian(1, 64, seed=1).double().flatten() * 10
    a, b = a + 1, b + 1
    found, unsigned = [], []
    for seed in range(0, 2000, 2):
        codes = coded((1, 64), 16, seed).flatten()
        place, sign = codes.abs().long() - 1, codes.sign().double()
        phi = [torch.zeros(16, dtype=torch.float64).index_add_(0, place, v * sign) for v in (a, b)]
        found.append(float(phi[0] @ phi[1]))
        bare = [torch.zeros(16, dtype=torch.float64).index_add_(0, place, v) for v in (a, b)]
        unsigned.append(float(bare[0] @ bare[1]))
    found, unsigned = torch.tensor(found), torch.tensor(unsigned)
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean()) - float(a @ b)) < 5 * error
    assert abs(float(unsigned.mean()) - float(a @ b)) > 5 * error


def test_the_file_holds_values_and_a_seed(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
    recipe = Recipe((Rule(steps=(Hashed(ratio=1 / 16, start="first", own=True),)),))
    x, y = torch.randn(256, 64), torch.randint(32, (256,))
    attach(model, recipe, example=x)
    seeds = [packed.settings["seed"] for packed in packed_weights(model).values() if isinstance(packed, Packed)]
    assert seeds == [0, 2]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    artifact = lilliput.pack(model.eval())
    assert all("codes" not in p.parts for p in artifact.weights.values() if isinstance(p, Packed))
    path = tmp_path / "net.safetensors"
    artifact.save(path)
    assert torch.allclose(lilliput.load(path)(x), model(x), atol=1e-6)


def test_refusals():
    with pytest.raises(MethodError, match="seed = -1"):
        Hashed(seed=-1)
    with pytest.raises(MethodError, match="no start"):
        Hashed(start="second")
    packed = finished(Hashed(k=4), Hashed(k=4).pack(gaussian(3, 3)))
    for damaged in (
        packed.with_parts(values=torch.ones(0)),
        packed.with_parts(codes=torch.full((3, 3), 6, dtype=torch.int32)),
        packed.with_parts(codes=torch.zeros(3, 3, dtype=torch.int32)),
        packed.with_parts(codes=torch.full((3, 3), -(2**31), dtype=torch.int32)),
    ):
        with pytest.raises(MethodError, match="values"):
            unpack(damaged)
