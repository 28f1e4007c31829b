"""Core ML's packages: weights still compressed in the file, numbers by the definitions of its operators."""

import sys

import pytest
import torch
from torch import nn

import lilliput
from lilliput.core.errors import FileError, ModelError, NotInstalled
from lilliput.export.coreml_weights import Scaled, Table, scaled_of, weight_of
from lilliput.export.quantized import levels_in
from lilliput.quantize.uniform import Uniform
from lilliput.testing.engine import INT8, SYMMETRIC, compressed

SPARSE = '[[rule]]\nsteps = [{method = "prune/magnitude", sparsity = 0.8}]'
SHARED = '[[rule]]\nsteps = [{method = "share/kmeans", k = 16}]'
BOTH = '[[rule]]\nsteps = [{method = "prune/magnitude", sparsity = 0.8}, {method = "share/kmeans", k = 16}]'
GROUPS = '[[rule]]\nsteps = [{method = "quantize/uniform", bits = 4, per = "group", group = 8, symmetric = false}]'
BINARY = '[[rule]]\nsteps = ["quantize/binary"]'


def read(path):
    from lilliput.testing.mil import program_of

    return program_of(path)


def exported(artifact, folder):
    pytest.importorskip("coremltools", reason="coremltools isn't installed")
    artifact.export(folder / "net.mlpackage", engine="coreml")
    return read(folder / "net.mlpackage"), sum(f.stat().st_size for f in (folder / "net.mlpackage").rglob("*.bin"))


def run(program, x):
    from lilliput.testing.mil import ran

    (name,) = program.functions["main"].inputs
    return ran(program, {name: x})[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [("vit", ""), ("efficientnet_lite", ""), ("mobilenet_v2", INT8), ("vgg", SYMMETRIC)],
    ids=["vit", "efficientnet", "mobilenet int8", "vgg symmetric"],
)
def test_numbers(name, text, tmp_path):
    artifact, x, _ = compressed(name, text)
    program, _ = exported(artifact, tmp_path)
    with torch.no_grad():
        found, wanted = run(program, x[:1]), lilliput.load(artifact, engine="dense")(x[:1])
    # A value near a border may fall to the next level.
    assert (found - wanted).norm() <= (1e-5 if not text else 0.05) * wanted.norm()
    kinds = [op.op_type for op in program.functions["main"].operations]
    layers = sum(kind in ("conv", "linear") for kind in kinds)
    if text:
        assert kinds.count("constexpr_blockwise_shift_scale") == layers
        assert kinds.count("quantize") == kinds.count("dequantize") == len(levels_in(artifact.graph))
    else:
        assert not {"quantize", "constexpr_blockwise_shift_scale"} & set(kinds)


@pytest.mark.parametrize(
    ("text", "kinds", "part"),
    [
        (SPARSE, {"constexpr_sparse_to_dense"}, 0.27),
        (SHARED, {"constexpr_lut_to_dense"}, 0.17),
        (BOTH, {"constexpr_lut_to_sparse", "constexpr_sparse_to_dense"}, 0.1),
        (GROUPS, {"constexpr_blockwise_shift_scale"}, 0.3),
        (BINARY, {"constexpr_lut_to_dense"}, 0.1),
    ],
    ids=["sparse", "shared", "both", "groups", "binary"],
)
def test_weights_stay_compressed(text, kinds, part, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval()
    x = torch.randn(1, 64)
    artifact = lilliput.compress(model, lilliput.Recipe.loads(text), example=x)
    program, size = exported(artifact, tmp_path)
    found = {op.op_type for op in program.functions["main"].operations}
    assert kinds <= found
    assert size < part * 4 * sum(p.numel() for p in model.parameters()) + 1200
    wanted = lilliput.load(artifact, engine="dense")(x)
    torch.testing.assert_close(run(program, x), wanted, rtol=1e-5, atol=1e-6)


def test_half_has_half_of_the_floats(tmp_path):
    tools = pytest.importorskip("coremltools", reason="coremltools isn't installed")
    assert tools.__version__
    artifact, _, _ = compressed("vgg", INT8)
    lilliput.run.coreml.Coreml(half=True).export(artifact, tmp_path / "net.mlpackage")
    operations = read(tmp_path / "net.mlpackage").functions["main"].operations
    scales = [op.scale.val for op in operations if op.op_type == "constexpr_blockwise_shift_scale"]
    assert scales
    assert {str(scale.dtype) for scale in scales} == {"float16"}


@pytest.mark.parametrize("settings", [{"bits": 8}, {"bits": 4}, {"bits": 4, "per": "group", "group": 16},
                                      {"bits": 8, "symmetric": False}, {"bits": 4, "per": "tensor"}])  # fmt: skip
def test_scaled_integers_are_the_weight(settings):
    packed = Uniform(**settings).pack(torch.randn(8, 32))
    found = scaled_of(packed)
    assert isinstance(found, Scaled)
    assert found.bits == settings["bits"]
    assert torch.equal(torch.from_numpy(found.values), lilliput.core.packed.unpack(packed))


def test_the_smallest_way_is_taken():
    torch.manual_seed(0)
    dense = torch.randn(16, 16)
    assert weight_of(None, dense) is None
    signs = weight_of(None, dense.sign())
    assert (signs.bits, signs.kept) == (1, None)
    few = weight_of(None, dense.where(dense.abs() > 1.5, torch.zeros(())))
    assert isinstance(few, Table)
    assert few.kept is not None


def test_what_it_says(tmp_path, monkeypatch):
    artifact, _, _ = compressed("vgg")
    with pytest.raises(ModelError, match="never run here"):
        lilliput.load(artifact, engine="coreml")
    with pytest.raises(ModelError, match=r"end in \.mlpackage"):
        artifact.export(tmp_path / "net.onnx", engine="coreml")
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(NotInstalled, match=r"pip install 'lilliput\[coreml\]'"):
        artifact.export(tmp_path / "net.mlpackage", engine="coreml")
    assert not list(tmp_path.iterdir())


def test_refusals_and_what_was_there(tmp_path):
    pytest.importorskip("coremltools", reason="coremltools isn't installed")
    odd = lilliput.compress(nn.Mish(), lilliput.Recipe(), example=torch.rand(1, 3))
    with pytest.raises(ModelError, match=r"no counterpart in Core ML for aten\.mish"):
        odd.export(tmp_path / "net.mlpackage", engine="coreml")
    plain = lilliput.compress(nn.Linear(3, 2), lilliput.Recipe(), example=torch.rand(1, 3))
    target = tmp_path / "net.mlpackage"
    target.mkdir()
    (target / "mine.txt").write_text("kept")
    with pytest.raises(FileError, match="something else is there"):
        plain.export(target, engine="coreml")
    assert [one.name for one in target.iterdir()] == ["mine.txt"]
    (target / "mine.txt").unlink()
    target.rmdir()
    for _ in range(2):
        plain.export(target, engine="coreml")
    assert (target / "Manifest.json").is_file()
    assert [one.name for one in tmp_path.iterdir()] == ["net.mlpackage"]
