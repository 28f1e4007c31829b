"""Kernels on bits beside torch's float32 and ONNX Runtime's int8, and beside what the core can do at most.

    python benchmarks/kernels_bits.py            # writes results/kernels_bits.json
    python benchmarks/kernels_bits.py binary     # only some: binary, planes, gemv, conv
    python benchmarks/kernels_bits.py tables     # what was measured, as docs/benchmarks/kernels-bits.md has it

One thread, batch 1, CPU time, all candidates in turn in every round, medians of rounds and of ratios in a round.

`binary`: 3 x 3 convolutions of signs. "limit" is the share of what XOR, count and add reach in registers in the same
run, by the kernel alone, all taps counted as work though those outside of a map aren't computed; "packed" the
operator's speed with packed inputs beside torch float32 (channels last or first, whichever is faster), "with packing"
from float maps. Beside them the bound of XNOR-Net (Rastegari et al. 2016, arXiv 1603.05279, section 3.3),
64 c N / (c N + 64) for N = 9 weights a channel; the paper measured 58x.
`planes`: DoReFa's bits and TNN's two planes at 14 x 14. `gemv`: 4096 x 9216 from memory (12 copies in turn), beside
reading alone. `conv`: ternary weights, int8 activations, beside QLinearConv of ONNX Runtime. About five minutes.
"""

# ruff: noqa: B023, E731
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch
from torch.nn import functional

from lilliput.core import kernel
from lilliput.kernels.bit_conv import plan
from lilliput.kernels.bit_layers import (
    BitLayer,
    Codes,
    Steps,
    pack_planes,
    plane_layer,
    sign_planes,
    ternary_layer,
    ternary_planes,
    xnor_layer,
)
from lilliput.kernels.ternary import prepare, ternary_conv, ternary_linear

RESULT = Path(__file__).parent / "results" / "kernels_bits.json"
ROUNDS = 7
BINARY = [(128, 56), (256, 56), (128, 28), (256, 28), (256, 14), (512, 14), (256, 7), (512, 7)]


def interleaved(candidates: dict[str, Callable[[], object]], rounds: int = ROUNDS, at_least: float = 0.02) -> dict:
    """Seconds of CPU of each candidate in each round; each is repeated for `at_least` seconds in a round."""
    repeats, found = {}, {name: [] for name in candidates}
    for name, run in candidates.items():
        run()
        start = time.thread_time()
        run()
        repeats[name] = max(1, int(at_least / max(time.thread_time() - start, 1e-6)))
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.thread_time()
            for _ in range(repeats[name]):
                run()
            found[name].append((time.thread_time() - start) / repeats[name])
    return found


def ratio(times: dict, slow: str, fast: str) -> float:
    """Median over the rounds of how much faster `fast` is."""
    return round(statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True)), 2)


def counting() -> tuple[Callable[[], object], float]:
    """A run of XOR, count and add in registers, and how many bits it compares."""
    out, rounds = torch.zeros(2, dtype=torch.int64), 100_000
    kernel.run("count_limit", rounds, out)
    return lambda: kernel.run("count_limit", rounds, out), rounds * 12 * float(out[0])


def into(layer: BitLayer, bits: torch.Tensor, scale: torch.Tensor) -> Callable[[], object]:
    """A run of a layer's kernel alone: packed inputs, outputs into memory that is there."""
    own = plan(bits.shape, len(layer.layer[0]), tuple(layer.numbers), tuple(layer.geometry), len(scale))
    y = torch.empty_strided(own.out, own.strides)
    return lambda: kernel.run("bit_conv", own.sizes, bits, None, *layer.layer, scale, *[None] * 5, y, None)


def binary() -> list[dict]:
    """Convolutions of signs."""
    rows = []
    for channels, size in BINARY:
        x, w = torch.randn(1, channels, size, size), torch.randn(channels, channels, 3, 3)
        last, w_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        layer, scale = xnor_layer(w, Steps(padding=(1, 1))), torch.ones(channels)
        bits = sign_planes(x)
        row = {"channels": channels, "size": size}
        for variant in [v for v in ("avx512", "avx2") if v in kernel.variants()]:
            with kernel.using(variant):
                limit, of = counting()
                times = interleaved(
                    {
                        "torch": lambda: functional.conv2d(x, w, None, 1, 1),
                        "torch_last": lambda: functional.conv2d(last, w_last, None, 1, 1),
                        "limit": limit,
                        "kernel": into(layer, bits, scale),
                        "packed": lambda: layer.real(bits, scale),
                        "from_first": lambda: layer.real(x, scale),
                        "from_last": lambda: layer.real(last, scale),
                        "with_k": lambda: layer.xnor_net(x, scale),
                    }
                )
                fast = min(("torch", "torch_last"), key=lambda name: statistics.median(times[name]))
                work = channels * channels * 9.0 * size * size
                shares = [a / of * work / b for a, b in zip(times["limit"], times["kernel"], strict=True)]
                row[variant] = {
                    "microseconds": round(1e6 * statistics.median(times["kernel"]), 1),
                    "limit": round(100 * statistics.median(shares), 1),
                    "packed": ratio(times, fast, "packed"),
                    "with_packing": ratio(times, fast, "from_first"),
                    "with_packing_last": ratio(times, fast, "from_last"),
                    "with_k": ratio(times, fast, "with_k"),
                }
        row["bound"] = round(64 * channels * 9 / (channels * 9 + 64), 2)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def planes() -> list[dict]:
    """k-bit inputs and m-bit weights, 256 channels at 14 x 14."""
    rows, channels, size = [], 256, 14
    x, w = torch.randn(1, channels, size, size), torch.randn(channels, channels, 3, 3)
    steps = Steps(padding=(1, 1))
    scale = torch.ones(channels)
    for name, m, k in [
        ("DoReFa 1 x 1", 1, 1),
        ("1 x 2", 1, 2),
        ("2 x 2", 2, 2),
        ("1 x 4", 1, 4),
        ("4 x 4", 4, 4),
        ("TNN", 0, 0),
    ]:
        if m:
            layer = plane_layer(torch.randint(0, 2**m, w.shape), Codes(m, 2, 1 - 2**m), Codes(k), steps)
            codes = torch.randint(0, 2**k, x.shape).byte()
            pack = lambda codes=codes, k=k: pack_planes(codes, k)
        else:
            layer = ternary_layer(w.round().clamp(-1, 1), steps)
            ternary = x.round().clamp(-1, 1)
            pack = lambda ternary=ternary: ternary_planes(ternary)
        bits = pack()
        times = interleaved(
            {
                "torch": lambda: functional.conv2d(x, w, None, 1, 1),
                "packed": lambda layer=layer, bits=bits: layer.real(bits, scale),
                "with_packing": lambda layer=layer, pack=pack: layer.real(pack(), scale),
            }
        )
        rows.append({"name": name} | {to: ratio(times, "torch", to) for to in ("packed", "with_packing")})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def gemv() -> dict:
    """Ternary weights of AlexNet's fc6 (half): one row of activations, weights from memory."""
    outputs, n = 4096, 9216
    packed = prepare(torch.randn(outputs, n).round().clamp(-1, 1))
    copies = cycle([packed.clone() for _ in range(12)])
    w, scale, x = torch.randn(outputs, n), torch.ones(outputs), torch.randn(1, n)
    codes = (x * 40).clamp(-127, 127).char().reshape(1, 1, 1, n)
    memory, out = torch.zeros(12 * packed.numel() // 4, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
    one = [1, 1, 1, 1, 0, 0, 1, 1]
    times = interleaved(
        {
            "torch": lambda: functional.linear(x, w),
            "read": lambda: kernel.run("read_limit", memory, memory.numel(), out),
            "int8": lambda: ternary_conv(codes, next(copies), one, 0, scale, None, None),
            "ttq": lambda: ternary_conv(codes, next(copies), one, 0, scale, scale, None),
            "float": lambda: ternary_linear(x, next(copies), [-1.0, 0.0, 1.0], scale, None),
        },
        rounds=15,
        at_least=0.04,
    )
    read = memory.numel() * 4 / statistics.median(times["read"])
    found = {"read_gb_s": round(read / 1e9, 1)}
    for name in ("int8", "ttq", "float"):
        share = [a / 12 / b for a, b in zip(times["read"], times[name], strict=True)]
        found[name] = {
            "milliseconds": round(1e3 * statistics.median(times[name]), 3),
            "over_torch": ratio(times, "torch", name),
            "share_of_reading": round(100 * statistics.median(share), 1),
        }
    print(json.dumps(found), flush=True)
    return found


def integer_conv(channels: int, size: int) -> Callable[[], object]:
    """QLinearConv of ONNX Runtime, uint8 x int8 by output channel, on one thread."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    def constant(name: str, value: object, dtype: type) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value, dtype), name)

    weights = np.random.default_rng(0).integers(-127, 128, (channels, channels, 3, 3))
    values = [
        constant("s", 0.05, np.float32),
        constant("z", 128, np.uint8),
        constant("w", weights, np.int8),
        constant("ws", np.full(channels, 0.01), np.float32),
        constant("wz", np.zeros(channels), np.int8),
    ]
    node = helper.make_node("QLinearConv", ["x", "s", "z", "w", "ws", "wz", "s", "z"], ["y"], pads=[1, 1, 1, 1])
    shape = [1, channels, size, size]
    sides = [[helper.make_tensor_value_info(n, TensorProto.UINT8, shape)] for n in ("x", "y")]
    graph = helper.make_graph([node], "g", *sides, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    return lambda: session.run(None, {"x": x})


def conv() -> list[dict]:
    """Ternary weights, int8 activations, 3 x 3."""
    rows = []
    for channels, size in [(64, 56), (128, 28), (256, 14), (256, 56), (512, 7)]:
        x, w = torch.randn(1, channels, size, size), torch.randn(channels, channels, 3, 3)
        packed, scale = prepare(w.round().clamp(-1, 1)), torch.ones(channels)
        codes = (x * 40).clamp(-127, 127).char().permute(0, 2, 3, 1).contiguous()
        geometry = [3, 3, 1, 1, 1, 1, 1, 1]
        times = interleaved(
            {
                "torch": lambda: functional.conv2d(x, w, None, 1, 1),
                "int8": integer_conv(channels, size),
                "ternary": lambda: ternary_conv(codes, packed, geometry, 0, scale, None, None),
            }
        )
        row = {"channels": channels, "size": size, "over_torch": ratio(times, "torch", "ternary")}
        rows.append(row | {"over_int8": ratio(times, "int8", "ternary")})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def tables() -> None:
    """Prints the results as tables."""
    found = json.loads(RESULT.read_text())
    names = ("limit", "packed", "with_packing", "with_k")
    print("| channels, size | bound | " + " | ".join(f"{v}: {n}" for v in ("avx512", "avx2") for n in names) + " |")
    print("| --- " * 10 + "|")
    for row in found["binary"]:
        cells = [f"{row[v][n]}" for v in ("avx512", "avx2") for n in names]
        print(f"| {row['channels']}, {row['size']} x {row['size']} | {row['bound']} | " + " | ".join(cells) + " |")
    print("\n| planes, 256 channels, 14 x 14 | packed | with packing |\n| --- | --- | --- |")
    for row in found["planes"]:
        print(f"| {row['name']} | {row['packed']} | {row['with_packing']} |")
    print(f"\n| 4096 x 9216, reading {found['gemv']['read_gb_s']} GB/s | ms | over torch | % of reading |")
    print("| --- | --- | --- | --- |")
    for name in ("int8", "ttq", "float"):
        row = found["gemv"][name]
        print(f"| {name} | {row['milliseconds']} | {row['over_torch']} | {row['share_of_reading']} |")
    print("\n| ternary x int8, 3 x 3 | over torch | over ONNX Runtime int8 |\n| --- | --- | --- |")
    for row in found["conv"]:
        print(f"| {row['channels']}, {row['size']} x {row['size']} | {row['over_torch']} | {row['over_int8']} |")


def main() -> None:
    if sys.argv[1:] == ["tables"]:
        tables()
        return
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    parts = {"binary": binary, "planes": planes, "gemv": gemv, "conv": conv}
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in sys.argv[1:] or parts:
        found[name] = parts[name]()
        found["machine"] = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "variants": kernel.variants(),
        }
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
