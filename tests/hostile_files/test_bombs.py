"""Small files that would take much memory, stack or time are refused before they do, as a process of its own shows."""

import json
import os
import subprocess
import sys

from lilliput.testing import mutate
from lilliput.testing.mutate import Forged

MOST_MEMORY = 200 * 2**20
MOST_SECONDS = 20

# Reads and unpacks each file; says how it was refused, and what memory and processor time that took.
READER = """
import json, re, sys, time
from lilliput.file import read
from lilliput.core.errors import FileError
# ru_maxrss would start from what the parent process had.
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
fine, *bombs = sys.argv[1:]
read.read(fine).state_dict()
start = peak()
for bomb in bombs:
    clock = time.process_time()
    try:
        read.read(bomb).state_dict()
        line = "it was read"
    except FileError as error:
        line = str(error)
    print(json.dumps([line, peak() - start, time.process_time() - clock]))
"""


def with_packed(manifest_text):
    """A file whose manifest is this text, deflated."""
    return Forged(manifest_text).seal()


def short_header(length):
    """A file that says its header has so many bytes, and has them."""
    return length.to_bytes(8, "little") + mutate.sealed(b"{}", b"")[8:] + b" " * length


def many_tensors(count):
    header = {f"{i:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}
    return mutate.sealed(json.dumps(header, separators=(",", ":")).encode(), b"")


def endless_zeros():
    """256 MiB of a manifest in 1 MB."""
    return with_packed(b'{"w":{}' + b" " * (256 << 20) + b"}")


def nested(depth, opening=b"[", closing=b"]"):
    return b'{"a":' + opening * depth + closing * depth + b"}"


def product(shape, u, v):
    """A low-rank weight, its factors of zeros."""
    parts = {
        name: part if isinstance(part, dict) else ["F32", part, "=", "00000000"] for name, part in (("u", u), ("v", v))
    }
    return {"m": "factorize/svd", "s": shape, "p": parts}


def factors(shape, u, v):
    return json.dumps({"w": {"w": product(shape, u, v)}}).encode()


BOMBS = {
    "header of 100 MB": lambda: short_header(100 << 20),
    "header of 16 MB of lists": lambda: mutate.sealed(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}", b""),
    "header of 15 MB of strings": lambda: mutate.sealed(b'{"a":[' + b'"",' * 5_000_000 + b'""]}', b""),
    "header of 15 MB of quotes": lambda: mutate.sealed(b'{"a' + b'\\"' * 7_500_000 + b"}", b""),
    "header of one number": lambda: mutate.sealed(b'{"a":' + b"9" * 15_000_000 + b"}", b""),
    "300,000 tensors": lambda: many_tensors(300_000),
    "200,000 tensors": lambda: many_tensors(200_000),
    "header 200,000 deep": lambda: mutate.sealed(nested(200_000), b""),
    "header 200,000 objects deep": lambda: mutate.sealed(nested(200_000, b'{"a":', b"}"), b""),
    "header 200,000 deep without end": lambda: mutate.sealed(b'{"a":' + b"[" * 200_000, b""),
    "manifest 200,000 deep": lambda: with_packed(nested(200_000)),
    "manifest that inflates to 256 MiB": endless_zeros,
    "manifest of 15 MB of lists": lambda: with_packed(b'{"w":[' + b"[]," * 5_000_000 + b"[]]}"),
    "manifest of 15 MB of numbers": lambda: with_packed(b'{"w":[' + b"1," * 7_000_000 + b"1]}"),
    "2^40 elements": lambda: with_packed(b'{"w":{"w":["U8",[1048576,1048576],"=","00"]}}'),
    "2^34 elements by rANS": lambda: Forged(b'{"w":{"w":["U8",[17179869183],"rans",3]}}', b"\0\0\0").seal(),
    "100,001 elements": lambda: with_packed(
        json.dumps({"w": {str(i): ["U8", [1], "=", "00"] for i in range(100_001)}}).encode()
    ),
    "weights that unpack to 2^40": lambda: with_packed(
        b'{"w":{"w":{"m":"factorize/svd","s":[1000000,1000000],"p":{"u":["F32",[1000000,1],"=","00000000"],'
        b'"v":["F32",[1,1000000],"=","00000000"]}}}}'
    ),
    "factors that are wider than their product": lambda: with_packed(
        b'{"w":{"w":{"m":"factorize/svd","s":[60000,60000],"d":"F16","p":{"u":["F64",[60000,1],"=","0000000000000000"],'
        b'"v":["F64",[1,60000],"=","0000000000000000"]}}}}'
    ),
    "a product that is not the declared one": lambda: with_packed(factors([1000, 1000], [200_000, 1], [1, 200_000])),
    "factors of factors": lambda: with_packed(
        factors([1000, 1000], {"m": "factorize/svd", "s": [1000, 2**31], "p": {}}, [2**31, 1000])
    ),
    "many products that are too much together": lambda: with_packed(
        json.dumps({"w": {f"w{i}": product([40_000, 40_000], [40_000, 1], [1, 40_000]) for i in range(3)}}).encode()
    ),
}


def test_bombs(small, tmp_path):
    fine = tmp_path / "fine"
    fine.write_bytes(small("odd", "named"))
    paths = [tmp_path / str(number) for number in range(len(BOMBS))]
    for path, bomb in zip(paths, BOMBS.values()):
        path.write_bytes(bomb())
    environment = os.environ | {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READER, str(fine), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    for name, path, text in zip(BOMBS, paths, done.stdout.splitlines(), strict=True):
        line, memory, seconds = json.loads(text)
        assert line.startswith((f"{path}: ", "weight 'w' can't be unpacked: ")), name
        assert line.isprintable(), name
        print(f"{name}: {memory / 2**20:.0f} MiB, {seconds:.2f} s: {line}")
        assert memory < MOST_MEMORY, name
        assert seconds < MOST_SECONDS, name


def test_the_smallest_bombs_are_small():
    assert len(BOMBS["2^40 elements"]()) < 1000
    assert len(BOMBS["2^34 elements by rANS"]()) < 1000
    assert len(BOMBS["weights that unpack to 2^40"]()) < 1000
