"""Every engine beside the dense one, layer by layer, on the families of networks that exports are judged by.

Engines are found by name; one whose package isn't installed skips. None may refuse one of these networks, but for
what `REFUSED` names; engines that only write files have tests of their own.
"""

import sys
from functools import cache

import pytest
import torch

import lilliput
from lilliput.core.errors import ModelError, NotInstalled
from lilliput.core.method import methods
from lilliput.export.sizes import infos_at
from lilliput.testing.engine import INT8, apart, compressed, every_input, small_networks

ENGINES = [one.path.removeprefix("run/") for one in methods("run") if one.kind == "engine"]
WRITERS = {"coreml", "tensorrt", "mace", "paddlelite"}
ENGINES = [name for name in ENGINES if name not in {"native", "dense", "torch_sparse", "c"} | WRITERS]
NEAR = {"": 5e-4, INT8: 0.25}
"""MNN has an erf of its own, 1e-4 off. With levels a value near a border may fall to the next one; the rest follows."""

REFUSED = {("executorch", "resnet18", INT8): "runtime refuses the program"}
"""By engine, network and recipe: what it says."""
WHOLE = {("executorch", INT8)}
"""Its compiler fails at 8-bit networks that give inner tensors too, so that only results are compared."""

made = cache(compressed)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", small_networks())
@pytest.mark.parametrize("text", NEAR, ids=["floats", "int8"])
def test_each_layer_gets_what_it_gets_in_dense(engine, name, text):
    artifact, x, whole = made(name, text)
    try:
        if (engine, name, text) in REFUSED:
            with pytest.raises(ModelError, match=REFUSED[engine, name, text]):
                apart(artifact, engine, x)
            return
        found = [] if (engine, text) in WHOLE else apart(artifact, engine, x)
        net = lilliput.load(artifact, engine=engine)
    except NotInstalled as error:
        pytest.skip(f"{engine}: {error}")
    if (engine, text) in WHOLE:
        right = lilliput.load(artifact, engine="dense")(x)
        found = [("output", float((net(x) - right).norm() / right.norm()))]
    else:
        assert len(found) > 4
    assert max(far for _, far in found) < NEAR[text], found
    if text:
        # As near to the uncompressed network as the dense engine comes, within a half.
        with torch.no_grad():
            dense = (lilliput.load(artifact, engine="dense")(x) - whole).norm()
            assert (net(x) - whole).norm() < 1.5 * dense + 0.02 * whole.norm()


@pytest.mark.parametrize("engine", sorted(WRITERS))
def test_engines_that_only_write_say_so(engine):
    with pytest.raises(ModelError, match="only writes files"):
        lilliput.load(made("vgg")[0], engine=engine)


MISSING = {
    "coreml": "coremltools", "executorch": "executorch.exir", "litert": "flatbuffers", "mace": "onnx", "mnn": "onnx",
    "onnxruntime": "onnx", "openvino": "openvino", "paddlelite": "onnx", "qonnx": "onnx",
    "tensorrt": "onnx",
}  # fmt: skip
"""What an engine can't write its files without; ncnn's are written by our own hand."""
ENDINGS = {"coreml": ".mlpackage", "openvino": ".xml"}


@pytest.mark.parametrize("engine", sorted({*ENGINES, *WRITERS} - {"ncnn"}))
def test_what_is_missing_is_named_with_the_command(engine, tmp_path, monkeypatch):
    artifact = lilliput.compress(torch.nn.Linear(4, 2).eval(), lilliput.Recipe(), example=torch.rand(1, 4))
    # As if none had been imported: those that hold what is missing are held by others.
    for name in [name for name in sys.modules if name.startswith("lilliput.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, MISSING[engine], None)
    with pytest.raises(
        NotInstalled, match=r"needs .*: pip install 'lilliput\[|need the package .*: pip install"
    ) as found:
        artifact.export(tmp_path / f"net{ENDINGS.get(engine, '')}", engine=engine)
    assert "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


def test_inputs_of_layers_are_told_apart():
    artifact, x, _ = made("vgg")
    tapped, names = every_input(artifact)
    found = lilliput.load(tapped, engine="dense")(x)
    assert names[-1] == "output"
    assert len(found) == len(names) == len(set(names))
    torch.testing.assert_close(found[-1], lilliput.load(artifact, engine="dense")(x))


def test_sizes_are_those_of_one_example():
    artifact, _, _ = made("vit")
    graph = artifact.graph
    found = infos_at(graph, artifact.state_dict() | artifact.constants, dict.fromkeys(graph.symbols, 1))
    assert {one for one in found if isinstance(one, int)} == {1}
    assert found[-1].shape == (1, 10)
    with pytest.raises(ModelError, match="doesn't run at the sizes"):
        infos_at(graph, artifact.state_dict() | artifact.constants, dict.fromkeys(graph.symbols, "odd"))
