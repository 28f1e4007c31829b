"""Compiles the kernels for another machine, without Python or torch, and runs their self-test under qemu.

    make cross                                        # all kernels for aarch64
    python tests/kernels/cross/build.py bit_conv pack_maps maps    # some of them

Takes Debian's `g++-aarch64-linux-gnu` or `ziglang` from PyPI, and `qemu-user` to run what was built. NEON is the
generic variant: aarch64 always has it. Ends with 2 where no such compiler is installed, with 0 where all is right, or
was only compiled because there is no qemu.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[3]
CPP = ROOT / "src" / "cpp"
FLAGS = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-DLILLIPUT_ISA=generic", f"-I{CPP}"]


def compiler() -> list[str] | None:
    """The command of a C++ compiler for aarch64, or None."""
    if shutil.which("aarch64-linux-gnu-g++"):
        return ["aarch64-linux-gnu-g++", "-static"]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-static"]
    return None


def emulator() -> str | None:
    """What runs programs of aarch64 here, or None."""
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def built(command: list[str], names: list[str], folder: Path) -> Path:
    """Compiles kernels, all if none is named, and the self-test; returns the program."""
    kernels = [path for path in sorted((CPP / "kernels").glob("*.cpp")) if not names or path.stem in names]
    sources = [*kernels, CPP / "table.cpp", CPP / "threads.cpp", Path(__file__).parent / "selftest.cpp"]

    def one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        subprocess.run([*command, *FLAGS, "-c", str(source), "-o", str(target)], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(one, sources))
    program = folder / "selftest"
    subprocess.run([*command, *map(str, objects), "-lpthread", "-o", str(program)], check=True)
    return program


def main() -> int:
    command = compiler()
    if command is None:
        print("no compiler for aarch64: apt-get install g++-aarch64-linux-gnu, or pip install ziglang")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        program = built(command, sys.argv[1:], Path(folder))
        run = emulator()
        if run is None:
            print("compiled; not run: apt-get install qemu-user")
            return 0
        return subprocess.run([run, str(program)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
