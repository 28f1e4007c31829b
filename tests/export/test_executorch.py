"""ExecuTorch's programs give Lilliput's numbers in its runtime, with integers between levels."""

import pytest
import torch

import lilliput
from lilliput.export.executorch import Spelled
from lilliput.export.network import network_of
from lilliput.export.sizes import closed
from lilliput.testing.engine import INT8, compressed


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "efficientnet_lite", "vit"])
def test_levels_spelled_by_its_operators_are_the_same(name):
    pytest.importorskip("torch.ao.quantization.fx._decomposed")
    artifact, x, _ = compressed(name, INT8)
    graph, tensors = network_of(artifact, "a test")
    spelled = Spelled(closed(graph, tensors), tensors, artifact.weights)
    with torch.no_grad():
        wanted = lilliput.load(artifact, engine="dense")(x[:1])
        # The quantizer multiplies by 1 / scale: a tie may fall to the other level.
        assert (spelled(x[:1])[0] - wanted).norm() < 0.02 * wanted.norm()


def test_a_program_holds_integers(tmp_path):
    pytest.importorskip("executorch", reason="executorch isn't installed")
    sizes = []
    for text in ("", INT8):
        artifact, x, _ = compressed("vgg", text)
        artifact.export(tmp_path / "net.pte", engine="executorch")
        sizes.append((tmp_path / "net.pte").stat().st_size)
    assert sizes[1] < 0.4 * sizes[0]
    with torch.no_grad():
        found, wanted = (lilliput.load(artifact, engine=name)(x) for name in ("executorch", "dense"))
    assert (found - wanted).norm() < 0.01 * wanted.norm()
