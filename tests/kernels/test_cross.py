"""The kernels of the generic variant on aarch64, whose NEON counts bits: compiled, and run under qemu."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "cross" / "build.py"


def test_kernels_compile_for_aarch64_and_are_right_under_qemu(monkeypatch):
    specification = importlib.util.spec_from_file_location("cross_build", SCRIPT)
    cross = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(cross)
    command = cross.compiler()
    if command is None or "ziglang" in command:  # that one builds a library of C++ first, which takes minutes
        pytest.skip("g++-aarch64-linux-gnu isn't installed: `make cross` tells")
    if cross.emulator() is None:
        pytest.skip("qemu-user isn't installed")
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "bit_conv", "pack_maps", "maps"])
    assert cross.main() == 0
