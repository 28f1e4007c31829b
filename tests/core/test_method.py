"""Finding methods by the names of their files."""

import subprocess
import sys

import pytest

from lilliput.core import method
from lilliput.core.errors import MethodError
from lilliput.core.method import FAMILIES, KINDS, find, find_path, kind_of, methods, path_of
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.uniform import Uniform


def test_every_method_is_found_again_by_its_path():
    listed = list(methods())
    assert len(listed) >= 8
    assert [m.path for m in listed] == [m.path for f in FAMILIES for m in methods(f)]
    for one in listed:
        cls = find_path(one.path)
        assert path_of(cls) == one.path
        assert kind_of(cls) == one.kind in KINDS
        assert one.summary.endswith((".", "…")) or len(one.summary) > 10
        assert "\n" not in one.summary


def test_kinds_of_the_first_methods():
    kinds = {m.path: m.kind for m in methods()}
    assert kinds["prune/magnitude"] == "criterion"
    assert kinds["prune/unstructured"] == "pattern"
    assert kinds["prune/iterative"] == "schedule"
    assert kinds["quantize/uniform"] == kinds["share/kmeans"] == kinds["factorize/svd"] == "weight method"
    assert kinds["distill/logits"] == "loss"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("quantize/unifrom", "no method 'quantize/unifrom'; there is quantize/uniform"),
        ("quantise/uniform", "no family 'quantise'; there are prune, quantize"),
        ("uniform", "'uniform' names no family; write it as in 'quantize/uniform'"),
        ("", "names no family"),
        ("quantize/", "no method 'quantize/'"),
        ("quantize/../core/packed", "no family 'quantize/../core'"),
        ("core/packed", "no family 'core'"),
        ("quantize/__init__", "no method 'quantize/__init__'"),
    ],
)
def test_unknown_names(path, message):
    with pytest.raises(MethodError) as raised:
        find_path(path)
    assert message in str(raised.value)


def test_only_the_asked_file_is_imported():
    code = (
        "import sys; from lilliput.core.method import find; find('quantize', 'uniform');"
        "print([m for m in sys.modules if m.startswith(('lilliput.quantize.', 'lilliput.prune', 'lilliput.share'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['lilliput.quantize.uniform']"


def test_a_broken_file_fails_with_its_own_traceback(monkeypatch, tmp_path):
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('mine')")
    import lilliput.quantize as package

    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    with pytest.raises(RuntimeError, match="mine"):
        find("quantize", "broken_one")


def test_one_file_is_all_that_a_method_needs(monkeypatch, tmp_path):
    (tmp_path / "same_again.py").write_text(
        '"""Keeps the weight as it is."""\n'
        "from dataclasses import dataclass\n"
        "from lilliput.core.method import WeightMethod\n"
        "from lilliput.core.packed import Packed\n"
        "@dataclass(frozen=True)\n"
        "class SameAgain(WeightMethod):\n"
        "    extra: int = 3\n"
        "    def pack(self, weight, stats=None, prior=None):\n"
        "        return Packed('quantize/same_again', tuple(weight.shape), weight.dtype, {'w': weight.clone()})\n"
        "    @staticmethod\n"
        "    def unpack(packed):\n"
        "        return packed.tensor('w', shape=packed.shape, integer=False)\n"
    )
    import torch

    import lilliput.quantize as package
    from lilliput.core.packed import unpack
    from lilliput.core.recipe import Recipe

    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    try:
        assert "quantize/same_again" in {m.path for m in methods("quantize")}
        recipe = Recipe.loads('[[rule]]\nsteps = [{method = "quantize/same_again", extra = 5}]')
        assert recipe.rules[0].steps[0].extra == 5
        assert unpack(recipe.rules[0].steps[0].pack(torch.ones(2))).tolist() == [1, 1]
    finally:
        sys.modules.pop("lilliput.quantize.same_again", None)
        method._found.cache_clear()


def test_a_third_partys_entry_point(monkeypatch):
    class Point:
        name, value = "mine", "test_method:Foreign"

        def load(self):
            return Foreign

    class Foreign(Uniform):
        pass

    monkeypatch.setattr(method, "_plugins", lambda family: {"mine": Point()} if family == "quantize" else {})
    Foreign.__module__ = "test_method"
    assert find("quantize", "mine") is Foreign
    assert path_of(Foreign(bits=3)) == "quantize/mine"
    method._found.cache_clear()


def test_what_is_no_method():
    with pytest.raises(MethodError, match="fits no kind"):
        kind_of(object())
    with pytest.raises(MethodError, match="can't be found by name"):
        path_of(type("Local", (Magnitude,), {"__module__": "somewhere"}))
