"""LBCNN: anchors that training leaves alone and a file makes again from their seed."""

import math

import pytest
import torch

import lilliput
from lilliput.core.errors import FileError, MethodError
from lilliput.core.packed import Packed, leaves, unpack
from lilliput.file.read import loads
from lilliput.file.write import dumps
from lilliput.nets.lbcnn import LBCNN
from lilliput.share.seeded import Seeded
from lilliput.solve.hashing import xxh32
from lilliput.solve.seeded import ternary

NET = LBCNN(3, 8, 32, hidden=16)


def anchors(model):
    return {name: buffer for name, buffer in model.named_buffers() if "anchors" in name}


def test_anchors_by_hand():
    """Place by place, from the hashes that the file format names."""
    n, kept, seed = 60, 25, 7
    rank = [int(xxh32(torch.tensor(p), torch.tensor(0), seed)) for p in range(n)]
    signs = [1 if int(xxh32(torch.tensor(j), torch.tensor(1), seed)) >= 2**31 else -1 for j in range(kept)]
    once, again = [0] * n, [0] * n
    for j, place in enumerate(sorted(range(n), key=lambda p: (rank[p], p))[:kept]):
        once[place] = signs[j]
    for j in range(kept):
        again[rank[j] % n] = signs[j]
    assert ternary((3, 20), seed, kept).flatten().tolist() == once
    assert ternary((3, 20), seed, kept, again=True).flatten().tolist() == again


@pytest.mark.parametrize("shape", [(7,), (16, 8, 3, 3), (5, 0), ()])
def test_density_is_exact_and_values_are_ternary(shape):
    size = math.prod(shape)
    for kept in {0, size // 3, size}:
        found = ternary(shape, 3, kept)
        assert found.shape == shape
        assert set(found.reshape(-1).tolist()) <= {-1, 0, 1}
        assert int((found != 0).sum()) == kept


def test_with_replacement_the_density_is_one_less_an_exponential():
    """The authors' code: 1 - e^-s of the elements aren't zero."""
    size = 200_000
    for part in (0.9, 0.5):
        found = (ternary((size,), 0, int(part * size), again=True) != 0).float().mean()
        assert float(found) == pytest.approx(1 - math.exp(-part), abs=0.005)


def test_signs_and_places_are_even():
    found = ternary((1000, 300), 11, 150_000)
    assert abs(int(found.sum())) < 5 * math.sqrt(150_000)
    rows = (found != 0).sum(1).double()
    assert float(rows.mean()) == 150
    assert float(rows.std()) < 2 * math.sqrt(300 * 0.25)
    assert (ternary((1000, 300), 12, 150_000) != found).double().mean() > 0.4


def test_too_many_are_refused():
    with pytest.raises(ValueError, match="can't be kept"):
        ternary((2,), 0, 3)


def test_anchors_are_buffers_and_training_leaves_them_alone():
    torch.manual_seed(0)
    model = NET.build()
    before = {name: value.clone() for name, value in anchors(model).items()}
    assert len(before) == 3
    assert before.keys() <= model.state_dict().keys()
    assert not {id(p) for p in model.parameters()} & {id(b) for b in anchors(model).values()}
    data = [(torch.rand(8, 1, 28, 28), torch.arange(8))] * 3
    lilliput.fit(model, data, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in anchors(model).items())
    assert not any(torch.equal(before["block1.anchors.weight"], before[f"block{n}.anchors.weight"]) for n in (2, 3))
    assert int((before["block1.anchors.weight"] != 0).sum()) == 32 * 8 * 9 // 2


def test_what_is_trained_is_the_mix():
    """m q learnable numbers (and q biases) where a convolution has C k k q: with m = C, k k times fewer."""
    block = LBCNN(1, 16, 16).build().block1
    assert sum(p.numel() for p in block.mix.parameters()) == 16 * 16 + 16
    assert block.anchors.weight.numel() == 16 * 16 * 9


def test_ternary_convolution_is_additions():
    """Without a multiplication: what the ones pick is added, what the minus ones pick subtracted."""
    model = NET.build()
    layer = model.block1.anchors
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    places = torch.nn.functional.unfold(x, 3, padding=1)
    rows = []
    for filters in layer.weight.flatten(1):
        rows.append(places[:, filters == 1].sum(1) - places[:, filters == -1].sum(1))
    expected = torch.stack(rows, 1).reshape(2, -1, 6, 6)
    assert torch.allclose(layer.double()(x), expected, atol=1e-12)


def test_a_file_holds_the_seed_alone(tmp_path):
    model = NET.build().eval()
    x = torch.rand(2, 1, 28, 28)
    artifact = lilliput.compress(model, lilliput.Recipe.preset("int8"), example=x)
    held = [value for name, value in artifact.weights.items() if "anchors" in name]
    assert all(isinstance(value, Packed) and not list(leaves(value)) for value in held)
    assert len(held) == 3
    # 64 anchors more in each block cost their mix, not themselves.
    path = tmp_path / "net.safetensors"
    artifact.save(path)
    back = lilliput.load(path)
    fresh = lilliput.load(path, into=LBCNN(3, 8, 32, hidden=16, seed=5).build())
    assert all(torch.equal(value, dict(fresh.named_buffers())[name]) for name, value in anchors(model).items())
    with torch.no_grad():
        assert torch.allclose(back(x), fresh(x), atol=1e-5)


def test_anchors_cost_less_than_fifty_bytes_each():
    few, many = (
        len(dumps(lilliput.compress(LBCNN(depth, 4, 64, hidden=4).build().eval(), lilliput.Recipe())))
        for depth in (2, 12)
    )
    own = LBCNN(1, 4, 64, hidden=4).build().block1
    trained = 4 * (sum(p.numel() for p in own.parameters()) + 2 * 4) + 8
    assert own.anchors.weight.numel() == 64 * 4 * 9
    assert (many - few) / 10 - trained < 50 * 8


def test_training_with_a_recipe_packs_them_too():
    model = NET.build()
    lilliput.attach(model, lilliput.Recipe.preset("int8"))
    artifact = lilliput.pack(model.eval())
    assert artifact.weights["block2.anchors.weight"].method == "share/seeded"
    back = loads(dumps(artifact))
    assert torch.equal(unpack(back.weights["block2.anchors.weight"]), model.block2.anchors.weight)


def test_anchors_that_were_changed_are_stored_as_they_are():
    model = NET.build().eval()
    model.block1.anchors.weight[0, 0, 0, 0] = 0.5
    artifact = lilliput.compress(model, lilliput.Recipe())
    assert isinstance(artifact.weights["block1.anchors.weight"], torch.Tensor)
    assert isinstance(artifact.weights["block2.anchors.weight"], Packed)


def test_a_file_s_constant_is_checked():
    good = Seeded(3, 5).make((4, 4))
    assert int((unpack(good) != 0).sum()) == 5
    for settings in ({"seed": 1.5}, {"kept": 17}, {"kept": -1}, {"again": 1}):
        with pytest.raises(MethodError):
            Seeded.unpack(Packed("share/seeded", (4, 4), torch.float32, {}, {**good.settings, **settings}))
    with pytest.raises(MethodError, match="number of elements"):
        Seeded.unpack(Packed("share/seeded", (2**20, 2**10), torch.float32, {}, good.settings))
    bad = lilliput.Artifact(
        {"a": Packed("share/seeded", (2,), torch.float32, {}, {"seed": 0, "kept": 3, "again": False})}
    )
    with pytest.raises(FileError, match="can't be unpacked"):
        loads(dumps(bad)).state_dict()


def test_cut_anchors_are_still_made_from_the_seed():
    """Twice, along both axes; what the file holds besides is which are kept."""
    x = torch.rand(2, 1, 28, 28)
    model = NET.build().eval()
    for _ in range(2):
        model, _ = lilliput.cut(model, 0.3, x)
    assert model.block1.anchors.weight.shape[0] < 32 * 0.6
    artifact = lilliput.compress(model, lilliput.Recipe.preset("int8"), example=x)
    held = artifact.weights["block1.anchors.weight"]
    assert held.method == "share/seeded"
    assert all(not part.dtype.is_floating_point for _, part in leaves(held))
    back = loads(dumps(artifact))
    assert torch.equal(unpack(back.weights["block1.anchors.weight"]), model.block1.anchors.weight)
    fresh = lilliput.load(back, into=NET.build())
    with torch.no_grad():
        assert torch.allclose(lilliput.load(back)(x), fresh(x), atol=1e-5)


def test_taking_is_index_selection():
    whole = Seeded(3, 40).make((6, 5, 3))
    once = Seeded.take(Seeded.take(whole, 0, torch.tensor([1, 2, 5])), 1, torch.tensor([0, 4]))
    twice = Seeded.take(once, 0, torch.tensor([0, 2]))
    assert torch.equal(unpack(once), unpack(whole)[[1, 2, 5]][:, [0, 4]])
    assert torch.equal(unpack(twice), unpack(whole)[[1, 5]][:, [0, 4]])
    for damaged in (once.with_parts(axis0=torch.tensor([0, 1, 6])), once.with_parts(axis0=torch.tensor([0]))):
        with pytest.raises(MethodError, match="share/seeded"):
            unpack(damaged)


def test_it_is_no_step_of_a_recipe():
    with pytest.raises(lilliput.LilliputError):
        lilliput.Recipe.loads('[[rule]]\nsteps = [{method = "share/seeded"}]\n')
