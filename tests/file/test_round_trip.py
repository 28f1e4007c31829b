"""What is written is what is read, bit for bit, in as many bytes as was said."""

import functools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lilliput.core.errors import LilliputError, NotWorthwhile
from lilliput.core.method import find_path, methods
from lilliput.core.packed import Packed, leaves, pack_steps, unpack
from lilliput.core.recipe import Recipe
from lilliput.file import read, write
from lilliput.file.artifact import Artifact
from lilliput.quantize.uniform import Uniform
from lilliput.testing import small_files

FORMS = ("auto", "named", "solid")
NAMES = (*small_files.RECIPES, "odd")


def bits(tensor):
    """A tensor's elements as bytes, whatever their type."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(before, after):
    """Two weights, packed or not, are the same down to the last bit."""
    assert type(before) is type(after)
    if isinstance(before, Packed):
        assert (before.method, before.shape, before.dtype) == (after.method, after.shape, after.dtype)
        assert dict(before.settings) == dict(after.settings)
        assert [type(value) for value in before.settings.values()] == [type(v) for v in after.settings.values()]
        assert list(before.parts) == list(after.parts)
    for (path, a), (other, b) in zip(leaves(before), leaves(after), strict=True):
        assert path == other
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert bits(a) == bits(b)


@functools.cache
def the_artifact(name):
    return small_files.odd() if name == "odd" else small_files.artifact(name)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_everything_comes_back(name, form):
    before = the_artifact(name)
    after = read.loads(write.dumps(before, form))
    assert list(after.weights) == list(before.weights)
    for key, value in before.weights.items():
        assert_same(value, after.weights[key])
    for key, value in before.constants.items():
        assert_same(value, after.constants[key])
    assert after.recipe == before.recipe
    assert after.graph == before.graph
    assert (after.cuts, dict(after.aliases), after.facts) == (before.cuts, dict(before.aliases), before.facts)
    state = after.state_dict()
    for key, value in before.state_dict().items():
        assert bits(state[key]) == bits(value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_declared_size_is_the_written_size(name, form, tmp_path):
    artifact, path = the_artifact(name), tmp_path / "net.safetensors"
    assert write.write(artifact, path, form) == path.stat().st_size == write.size(artifact, form)
    sizes = write.sizes(artifact, form)
    parts = [b for table in (sizes["coded"], sizes["floats"]) for own in table.values() for b in own.values()]
    assert sizes["total"] == path.stat().st_size
    assert sizes["total"] == sizes["header"] + sizes["manifest"] + sizes["graph"] + sum(parts)
    seen = read.inspect(path)
    assert seen["size"] == seen["header"] + seen["manifest"] + seen["graph"] + seen["streams"] + seen["floats"]
    assert (seen["graph"], seen["header"]) == (sizes["graph"], sizes["header"])


def test_auto_is_within_a_thousandth_of_the_smallest():
    for name in NAMES:
        lengths = {form: len(write.dumps(the_artifact(name), form)) for form in FORMS}
        assert lengths["solid"] <= lengths["auto"] <= lengths["solid"] * 1.001


@pytest.mark.parametrize("name", NAMES)
def test_other_readers_see_a_safetensors_file(name, tmp_path):
    artifact = the_artifact(name)
    write.write(artifact, tmp_path / "net.safetensors", "named")
    with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.metadata()["format"] == "lilliput"
        assert "lilliput.manifest" in names
        for key, value in artifact.weights.items():
            for part, tensor in leaves(value):
                full = f"{key}/{part}" if part else key
                if full in names:
                    assert bits(file.get_tensor(full)) == bits(tensor)
    wanted = {"4.bias", "4.weight/scale"} if name == "uniform" else set()
    assert wanted <= names


def test_the_same_bytes_in_another_process(tmp_path):
    code = (
        "import sys; from lilliput.testing.small_files import artifact; from lilliput.file import write;"
        "write.write(artifact('shared', graph=False), sys.argv[1], 'named')"
    )
    written = []
    for seed in ("0", "1"):
        path = tmp_path / seed
        environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"}
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)
        written.append(path.read_bytes())
    assert written[0] == written[1] == write.dumps(small_files.artifact("shared", graph=False), "named")


def weight_methods():
    for listing in methods():
        if listing.kind in {"weight method", "criterion"}:
            cls = find_path(listing.path)
            if cls.needs:  # calibration decides what they keep, not what the packed form looks like
                continue
            yield from ((listing.path, choice) for choice in cls.choices() or (cls(),))


SHAPES = ((6, 8), (4, 3, 3, 3), (5,), (1,), (0, 4), ())


@pytest.mark.parametrize(("path", "method"), list(weight_methods()), ids=str)
def test_every_weight_method(path, method):
    numbers = torch.Generator().manual_seed(len(path))
    packed, left_alone = {}, False
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for shape in SHAPES:
            weight = torch.randn(shape, generator=numbers).to(dtype)
            for zeros in (False, True):
                try:
                    name = f"{str(dtype)[6:]}x{'x'.join(map(str, shape))}x{zeros}"
                    packed[name] = pack_steps(weight * (weight > 0) if zeros else weight, (method,))
                except NotWorthwhile:
                    left_alone = True
                except LilliputError:
                    continue
    assert packed or left_alone
    for form in ("named", "solid"):
        after = read.loads(write.dumps(Artifact(packed), form))
        for name, before in packed.items():
            assert_same(before, after.weights[name])
            assert bits(unpack(before)) == bits(after.state_dict()[name])


DTYPES = tuple(
    getattr(torch, name)
    for name in ["float64", "float32", "float16", "bfloat16", "bool", "uint8", "int8", "int16", "int32", "int64"]
)


@st.composite
def tensors(draw):
    """Tensors of any dtype with any bits, small shapes."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    count = int(np.prod(shape))
    if dtype == torch.bool:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=dtype).reshape(shape)
    raw = bytearray(draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize)))
    return torch.frombuffer(raw, dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


NAME = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="./\\"), min_size=1, max_size=12)
FACTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


HELD = st.dictionaries(NAME, tensors(), max_size=5)


@settings(max_examples=150, deadline=None)
@given(HELD, st.dictionaries(st.text(), FACTS, max_size=3), st.sampled_from(FORMS))
def test_any_tensors_under_any_names(held, facts, form):
    after = read.loads(write.dumps(Artifact(held, facts=facts), form))
    assert list(after.weights) == list(held)
    for name, tensor in held.items():
        assert_same(tensor, after.weights[name])
    assert after.facts == facts


def test_equal_tensors_are_stored_once():
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    once = write.sizes(Artifact({"a": numbers}))["total"]
    thrice = write.sizes(Artifact({"a": numbers, "b": numbers.clone(), "c": numbers.clone()}))
    assert thrice["total"] < once + 40
    after = read.loads(write.dumps(Artifact({"a": numbers, "b": numbers.clone()}))).weights
    after["a"][0] = 7
    assert after["b"][0] == numbers[0]


def test_constant_tensors_cost_next_to_nothing():
    rest = {"var": torch.ones(4096), "mean": torch.zeros(4096), "count": torch.tensor(12), "flag": torch.tensor(True)}
    assert write.size(Artifact({"x": torch.rand(50), **rest})) < write.size(Artifact({"x": torch.rand(50)})) + 80


def test_tensors_need_not_be_contiguous_or_without_gradient():
    base = torch.randn(6, 8, requires_grad=True)
    held = {"t": base.t(), "s": base[::2, 1::3], "p": torch.nn.Parameter(torch.randn(3)), "e": torch.ones(1).expand(5)}
    after = read.loads(write.dumps(Artifact(held))).weights
    for name, tensor in held.items():
        assert_same(tensor.detach(), after[name])
        assert not after[name].requires_grad


def test_packed_codes_of_a_transposed_weight():
    packed = Uniform(4).pack(torch.randn(6, 8).t())
    assert bits(unpack(read.loads(write.dumps(Artifact({"w": packed}))).weights["w"])) == bits(unpack(packed))


def test_facts_that_are_not_finite_become_null():
    facts = {"snr": float("inf"), "by": [np.float32(0.5), np.int64(3), (1, 2)], "shape": torch.Size([2])}
    after = read.loads(write.dumps(Artifact({}, facts=facts)))
    assert after.facts == {"snr": None, "by": [0.5, 3, [1, 2]], "shape": [2]}


def test_an_empty_artifact():
    after = read.loads(write.dumps(Artifact({})))
    assert dict(after.weights) == {}
    assert after.recipe == Recipe()


def test_ten_thousand_small_tensors():
    numbers = torch.randn(10_000, 4, generator=torch.Generator().manual_seed(0))
    held = {f"blocks.{i}.bias": row.clone() for i, row in enumerate(numbers)}
    for form in ("named", "solid"):
        after = read.loads(write.dumps(Artifact(held), form)).weights
        assert all(torch.equal(after[name], tensor) for name, tensor in held.items())


def test_a_moved_alias_keeps_its_weight():
    artifact = replace(small_files.odd(), aliases={"head.weight": "i64.5"})
    state = read.loads(write.dumps(artifact)).state_dict()
    assert torch.equal(state["head.weight"], artifact.weights["i64.5"])
