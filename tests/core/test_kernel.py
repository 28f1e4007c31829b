"""How kernels are chosen and called, and the threads under them."""

import os
import subprocess
import sys

import pytest
import torch

from lilliput.core import kernel, native
from lilliput.core.errors import LilliputWarning, MethodError

compiled = pytest.mark.skipif(native.extension() is None, reason="needs the compiled extension")


@pytest.fixture
def chosen(monkeypatch):
    """What is chosen in a new process whose environment has more in it."""

    def choose(**environment):
        monkeypatch.setattr(kernel, "_state", {})
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return kernel.variant()

    return choose


@compiled
@pytest.mark.parametrize("name", ["reference", "generic", "avx2", "avx512"])
def test_the_environment_names_the_best_variant_to_use(chosen, name):
    expected = [v for v in kernel.variants() if kernel.VARIANTS.index(v) <= kernel.VARIANTS.index(name)][-1]
    assert chosen(LILLIPUT_CPU=name) == expected


def test_what_is_no_variant_is_named_and_left(chosen):
    with pytest.warns(LilliputWarning, match="LILLIPUT_CPU=pentium is none of"):
        assert chosen(LILLIPUT_CPU="pentium") == kernel.variants()[-1]


def test_without_the_extension_the_reference_runs(chosen):
    assert chosen(LILLIPUT_PURE="1") == "reference"


def test_variants_that_cannot_run_here_are_refused():
    with pytest.raises(MethodError, match="can't run here"), kernel.using("sse9"):
        pass


@compiled
def test_every_kernel_is_built_for_every_variant():
    module = native.extension()
    built = {}
    for name, isa, signature in module.kernels():
        built.setdefault(name, {})[isa] = signature
    for name, of in built.items():
        assert set(of) == {isa for _, isa, _ in module.kernels()}, name
        assert len(set(of.values())) == 1, f"{name} has two signatures"


@compiled
@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2).T, torch.zeros(2, 3, device="meta")]
)
def test_tensors_that_do_not_fit_a_pointer_are_refused(x):
    with pytest.raises(MethodError, match="pack_rows: argument 0 is"):
        kernel.run("pack_rows", x, torch.zeros(2, 1, dtype=torch.int32), 2, 3, 1)
    with pytest.raises(ValueError, match="too few or many"):
        kernel.run("pack_rows", torch.zeros(2, 3))


FORKING = """
import os, sys, threading, torch
from lilliput.kernels.binary_linear import pack_signs
torch.set_num_threads(4)
x = torch.randn(4096, 300)
expected = pack_signs(x)
stop = []
def busy():
    while not stop: pack_signs(x)
threads = [threading.Thread(target=busy) for _ in range(3)]
for t in threads: t.start()
codes = []
for _ in range(10):
    child = os.fork()
    if child == 0: os._exit(0 if torch.equal(pack_signs(x), expected) else 1)
    codes.append(os.waitpid(child, 0)[1])
stop.append(1)
for t in threads: t.join()
sys.exit(any(codes))
"""


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kernels_run_in_children_forked_while_others_compute():
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", FORKING], env=environment, timeout=60, check=True)
