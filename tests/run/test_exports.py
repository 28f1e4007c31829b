"""Every engine beside the dense one, layer by layer, on the families of networks that exports are judged by.

Engines are found by name; one whose package isn't installed skips, and so does one that has no counterpart of an
operator: what each must take is in its own test.
"""

from functools import cache

import pytest
import torch

import lilliput
from lilliput.core.errors import ModelError, NotInstalled
from lilliput.core.method import methods
from lilliput.export.sizes import infos_at
from lilliput.testing.engine import INT8, apart, compressed, every_input, small_networks

ENGINES = [one.path.removeprefix("run/") for one in methods("run") if one.kind == "engine"]
ENGINES = [name for name in ENGINES if name not in {"native", "dense", "torch_sparse", "c"}]
NEAR = {"": 5e-4, INT8: 0.25}
"""MNN has an erf of its own, 1e-4 off. With levels a value near a border may fall to the next one; the rest follows."""

made = cache(compressed)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", small_networks())
@pytest.mark.parametrize("text", NEAR, ids=["floats", "int8"])
def test_each_layer_gets_what_it_gets_in_dense(engine, name, text):
    artifact, x, whole = made(name, text)
    try:
        found = apart(artifact, engine, x)
    except NotInstalled as error:
        pytest.skip(f"{engine}: {error}")
    except ModelError as error:
        pytest.skip(f"{engine} refuses {name}: {error}")
    assert len(found) > 4
    assert max(far for _, far in found) < NEAR[text], found
    if text:
        # As near to the uncompressed network as the dense engine comes, within a half.
        with torch.no_grad():
            dense = (lilliput.load(artifact, engine="dense")(x) - whole).norm()
            assert (lilliput.load(artifact, engine=engine)(x) - whole).norm() < 1.5 * dense + 0.02 * whole.norm()


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
