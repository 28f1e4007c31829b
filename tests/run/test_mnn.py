"""MNN gives what the dense engine gives, keeps 8 bits and zeros, and nothing that sends logs is imported."""

import importlib.util
import subprocess
import sys

import pytest
import torch

import lilliput
from lilliput.core.errors import ModelError, NotInstalled
from lilliput.testing.engine import INT8, compressed

needs_mnn = pytest.mark.skipif(importlib.util.find_spec("_mnncengine") is None, reason="mnn isn't installed")
WEIGHTS = INT8.partition("activations")[0]
SPARSE = '[[rule]]\nsteps = [{method = "prune/magnitude", sparsity = 0.9}]'


@needs_mnn
def test_weights_keep_their_bits_and_zeros(tmp_path):
    sizes = {}
    for name, text in (("floats", ""), ("8 bits", WEIGHTS), ("sparse", SPARSE)):
        artifact, x, _ = compressed("resnet18", text)
        artifact.export(tmp_path / "net.mnn", engine="mnn")
        sizes[name] = (tmp_path / "net.mnn").stat().st_size
        net = lilliput.load(artifact, engine="mnn")
        for given in (x, x[:1]):
            wanted = lilliput.load(artifact, engine="dense")(given).detach()
            assert (net(given) - wanted).norm() < (0.01 if name == "8 bits" else 1e-4) * wanted.norm()
    assert sizes["8 bits"] < 0.35 * sizes["floats"]
    assert sizes["sparse"] < 0.4 * sizes["floats"]


@needs_mnn
def test_nothing_that_sends_logs_is_imported(tmp_path):
    artifact, _, _ = compressed("vgg")
    artifact.save(tmp_path / "net.safetensors")
    code = (
        "import sys, torch, lilliput\n"
        f"net = lilliput.load({str(tmp_path / 'net.safetensors')!r}, engine='mnn')\n"
        "net(torch.zeros(1, 3, 32, 32))\n"
        "print([name for name in sys.modules if name.startswith(('MNN.tools', 'aliyun', 'pip'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Nor does compiled code print into the output of programs.
    assert done.stdout == "[]\n"


@needs_mnn
def test_the_converter_imports_nothing_that_sends_logs():
    from lilliput.run.mnn import CONVERT

    code = f"{CONVERT}\nprint([name for name in sys.modules if name.startswith(('MNN', 'aliyun', 'pip'))])"
    done = subprocess.run([sys.executable, "-c", code, "mnnconvert"], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]"


@needs_mnn
def test_coarse_activations_are_refused():
    artifact, _, _ = compressed("vgg", INT8.replace("uniform:8", "uniform:4"))
    with pytest.raises(ModelError, match="fewer than 8 bits"):
        lilliput.load(artifact, engine="mnn")


@needs_mnn
def test_what_the_converter_says_comes_in_one_line():
    from lilliput.run.mnn import converted

    with pytest.raises(ModelError, match="MNN can't convert") as caught:
        converted(b"nothing of the kind", [])
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "_mnncengine", None)
    artifact = lilliput.compress(torch.nn.Linear(3, 2), lilliput.Recipe(), example=torch.rand(1, 3))
    with pytest.raises(NotInstalled, match=r"pip install 'lilliput\[mnn\]'"):
        lilliput.load(artifact, engine="mnn")
