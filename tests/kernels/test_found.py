"""Kernels are found by their files, with two parameters or three."""

import sys
import types

import torch
from torch import nn

from lilliput.graph.ir import InputRef, Node, TensorRef
from lilliput.kernels import found
from lilliput.quantize.uniform import Uniform

PACKED = Uniform(bits=8).pack(torch.randn(3, 4))
NODE = Node("aten.linear.default", (InputRef(0), TensorRef("weight")))


def test_files_are_asked(monkeypatch):
    two, three = types.ModuleType("two"), types.ModuleType("three")
    two.serves = lambda packed, node: nn.Identity() if packed is PACKED and node is NODE else None
    three.serves = lambda packed, node, inputs: nn.Flatten() if inputs == "levels" else None
    entries = [types.SimpleNamespace(name=name) for name in ("three", "two")]
    monkeypatch.setattr(found.pkgutil, "iter_modules", lambda path: entries)
    for module in (two, three):
        monkeypatch.setitem(sys.modules, f"lilliput.kernels.{module.__name__}", module)
    found._files.cache_clear()
    try:
        assert [name for name, _ in found.serving(PACKED, NODE)] == ["two"]
        assert [name for name, _ in found.serving(PACKED, NODE, "levels")] == ["three", "two"]
    finally:
        found._files.cache_clear()


def test_weights_as_they_are_have_files_of_their_own():
    node = Node("aten.conv2d.default", (InputRef(0), TensorRef("weight")), {"padding": (1, 1)})
    weight, x = torch.randn(32, 32, 3, 3), torch.randn(1, 32, 8, 8)
    made = dict(found.serving_dense(weight, node))
    right = nn.functional.conv2d(x, weight, padding=1)
    assert (made["winograd"](x) - right).norm() < made["winograd"].tolerance * right.norm()
    assert not list(found.serving_dense(weight.double(), node))
    assert not list(found.serving_dense(torch.randn(3, 4), NODE))
