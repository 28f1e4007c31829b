"""Sparse, shared and shift kernels beside torch's dense layers in float32.

    python benchmarks/kernels_sparse.py                    # all: about 3 minutes; writes results/kernels_sparse.json
    python benchmarks/kernels_sparse.py --parts conv1x1    # some of them
    python benchmarks/kernels_sparse.py --table            # prints the tables of what was measured

CPU time of one thread, every candidate once a round in turn, medians over the rounds and the median of the rounds'
ratios. A convolution's dense time is the better of torch's two layouts. A linear layer's weights come from memory, as
in a network that has others between two calls: each call takes the next of copies that together are 80 MB.
"""

import argparse
import ctypes
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lilliput.core import kernel
from lilliput.core.activations import Quantized
from lilliput.core.packed import pack_steps, unpack
from lilliput.graph.ir import InputRef, Node, TensorRef
from lilliput.kernels import codebook_linear, integer_conv, product, sparse_conv, sparse_linear
from lilliput.kernels.window import Window
from lilliput.prune.magnitude import Magnitude
from lilliput.quantize.activations.uniform import Uniform
from lilliput.quantize.incremental import Incremental
from lilliput.quantize.shift import Shift as ShiftCNN
from lilliput.quantize.uniform import Uniform as UniformWeight
from lilliput.share.kmeans import KMeans

RESULTS = Path(__file__).parent / "results" / "kernels_sparse.json"
CASES = dict[str, Callable[[], Any]]
COLD = 80_000_000
LINEAR = Node("aten.linear.default", (InputRef(0), TensorRef("weight")))
CONV1X1 = [(256, 256, 14), (512, 512, 14), (64, 256, 56), (256, 64, 56), (960, 320, 7)]
CONV3X3 = [(64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7)]
PATTERNS = {"single": "unstructured", "4x1": "block:4x1", "16x1": "block:16x1"}


def measured(cases: CASES, dense: list[str], rounds: int = 11, target: float = 0.008) -> dict[str, dict[str, float]]:
    """Times of all candidates in turn, and how many times as fast as the fastest of `dense` each is."""
    repeats = {}
    for name, call in cases.items():
        call()
        start = time.thread_time()
        call()
        repeats[name] = max(1, int(target / max(time.thread_time() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            start = time.thread_time()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.thread_time() - start) / repeats[name])
    best = min(dense, key=lambda name: statistics.median(times[name]))
    return {
        name: {
            "us": round(statistics.median(own) * 1e6, 1),
            "ratio": round(statistics.median(a / b for a, b in zip(times[best], own)), 2),
        }
        for name, own in times.items()
    }


def pruned(weight: Tensor, sparsity: float, pattern: str, *then: Any) -> Any:
    return pack_steps(weight, (Magnitude(sparsity=sparsity, pattern=pattern), *then))


def conv_cases(
    outputs: int, channels: int, size: int, side: int, sparsity: float, patterns: dict[str, str] = PATTERNS
) -> CASES:
    """A dense layer in both layouts, and sparse ones in each pattern; checked once."""
    x, window = torch.randn(1, channels, size, size), Window((side, side), padding=(side // 2, side // 2))
    weight = torch.randn(outputs, channels, side, side)
    last = [t.to(memory_format=torch.channels_last) for t in (x, weight)]
    cases: CASES = {
        "torch": lambda: functional.conv2d(x, weight, padding=side // 2),
        "torch, channels last": lambda: functional.conv2d(*last, padding=side // 2),
    }
    for name, pattern in patterns.items():
        whole = unpack(pruned(weight, sparsity, pattern))
        layer = sparse_conv.SparseConv(whole, window, {"single": 1, "4x1": 4, "16x1": 16, "2:4": 1}[name])
        close(layer(x), functional.conv2d(x, whole, padding=side // 2))
        cases[name] = lambda layer=layer: layer(x)
        cases[f"{name}, alone"] = alone(layer, x, layer(x))
    return cases


def alone(layer: sparse_conv.SparseConv, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """The kernel, packing included, into memory that is there: without Python's part and a new output."""
    own = layer.window
    sizes = [*x.shape, layer.outputs, own.groups, *own.numbers[:8], *y.shape[2:]]
    block, status = layer.value.shape[1], torch.zeros(1, dtype=torch.int32)
    part = (torch.tensor(sizes), layer.start, layer.column, layer.value, None, x, y, len(layer.column), block)
    return lambda: kernel.run("sparse_conv", *part, 0, status, None, -math.inf, math.inf)


def close(found: Tensor, expected: Tensor) -> None:
    """What is measured must be right."""
    if float((found - expected).norm()) > 1e-5 * float(expected.norm()):
        sys.exit(f"wrong by {float((found - expected).norm() / expected.norm())}")


def conv(part: str, side: int, shapes: list[tuple[int, int, int]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for channels, outputs, size in shapes:
        torch.manual_seed(0)
        cases = conv_cases(outputs, channels, size, side, 0.9)
        yield (
            f"{part} {channels} to {outputs}, {size} x {size}, 90 %",
            measured(cases, ["torch", "torch, channels last"]),
        )
    for sparsity in (0.7, 0.8):
        channels, outputs, size = shapes[-2]
        cases = conv_cases(outputs, channels, size, side, sparsity)
        label = f"{part} {channels} to {outputs}, {size} x {size}, {100 * sparsity:.0f} %"
        yield label, measured(cases, ["torch", "torch, channels last"])
    cases = conv_cases(outputs, channels, size, side, 0.5, {"2:4": "2:4"})
    yield f"{part} {channels} to {outputs}, {size} x {size}, 2:4", measured(cases, ["torch", "torch, channels last"])


def copies(layer: torch.nn.Module) -> itertools.cycle:
    """The layer's buffers again and again until they fill the caches; each call takes the next."""
    size = sum(t.numel() * t.element_size() for t in layer.buffers())
    layers = [layer]
    for _ in range(COLD // size):
        layers.append(type(layer).__new__(type(layer)))
        layers[-1].__dict__ = {**layer.__dict__, "_buffers": {k: v.clone() for k, v in layer._buffers.items()}}
    return itertools.cycle(layers)


def linear(name: str, outputs: int, inputs: int, steps: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A dense linear layer and sparse ones, for one row."""
    torch.manual_seed(0)
    weight, x = torch.randn(outputs, inputs), torch.randn(1, inputs)
    cases: CASES = {"torch": lambda: functional.linear(x, weight)}
    sizes = {"torch": weight.numel() * 4}
    for label, packed in ((label, make(weight)) for label, make in steps.items()):
        layer = sparse_linear.serves(packed, LINEAR)
        assert layer is not None
        close(layer(x), functional.linear(x, unpack(packed)))
        turn = copies(layer)
        cases[label] = lambda turn=turn: next(turn)(x)
        sizes[label] = sum(t.numel() * t.element_size() for t in layer.buffers())
    found = measured(cases, ["torch"])
    for label, size in sizes.items():
        found[label] |= {"MB": round(size / 1e6, 1), "GB/s": round(size / found[label]["us"] / 1e3, 1)}
    return name, found


def deep_compression() -> Iterator[tuple[str, dict[str, Any]]]:
    """The linear layers of AlexNet and VGG-16, pruned and shared as the paper prunes and shares them."""
    for net, layer, outputs, inputs, sparsity in [
        ("AlexNet", "fc6", 4096, 9216, 0.91),
        ("AlexNet", "fc7", 4096, 4096, 0.91),
        ("VGG-16", "fc6", 4096, 25088, 0.96),
        ("VGG-16", "fc7", 4096, 4096, 0.96),
    ]:
        steps = {
            "pruned": lambda w, s=sparsity: pruned(w, s, "unstructured"),
            "pruned and shared, 5 bits": lambda w, s=sparsity: pruned(w, s, "unstructured", KMeans(bits=5)),
        }
        yield linear(f"{net} {layer}: {outputs} x {inputs}, {100 * sparsity:.0f} % zeros", outputs, inputs, steps)


def patterns() -> Iterator[tuple[str, dict[str, Any]]]:
    steps = {name: lambda w, p=pattern: pruned(w, 0.9, p) for name, pattern in PATTERNS.items()}
    yield linear("linear 4096 x 9216, 90 %", 4096, 9216, steps)
    yield linear("linear 4096 x 9216, 2:4", 4096, 9216, {"2:4": lambda w: pruned(w, 0.5, "2:4")})


PROBE = """
#include <immintrin.h>
extern "C" float read4(const float* p, long n) {  // four streams, as the kernels read four rows
  __m256 sum[4] = {};
  const long each = n / 4;
  for (long i = 0; i < each; i += 8) {
    for (int s = 0; s < 4; ++s) {
      sum[s] = _mm256_add_ps(sum[s], _mm256_loadu_ps(p + s * each + i));
      if (i % 16 == 0) _mm_prefetch((const char*)(p + s * each + i + 512), _MM_HINT_T0);
    }
  }
  return _mm256_cvtss_f32(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
}
"""


def probe() -> tuple[Callable[[], Any], int]:
    """Reads 256 MB in four streams: what memory gives to one thread."""
    folder = tempfile.mkdtemp()
    source = Path(folder) / "probe.cpp"
    source.write_text(PROBE)
    library = source.with_suffix(".so")
    subprocess.run(["g++", "-O3", "-mavx2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    read = ctypes.CDLL(str(library)).read4
    read.restype = ctypes.c_float
    data = torch.ones(64_000_000)
    return lambda: read(ctypes.c_void_p(data.data_ptr()), ctypes.c_long(data.numel())), data.numel() * 4


def codebook() -> Iterator[tuple[str, dict[str, Any]]]:
    """One row times 4096 x 9216 shared values of each kind, beside what memory gives to one thread."""
    outputs, inputs = 4096, 9216
    torch.manual_seed(0)
    x, read = torch.randn(1, inputs), probe()
    x8 = (x * 30).round().clamp(-127, 127).to(torch.int8)
    dense = torch.randn(outputs, inputs)
    cases: CASES = {"torch": lambda: functional.linear(x, dense), "memory": read[0]}
    sizes = {"torch": dense.numel() * 4, "memory": read[1]}
    for values in (16, 64, 256):
        codes = torch.randint(0, values, (outputs, inputs))
        book = torch.randn(values)
        code = codebook_linear.prepare(codes, values)
        size = code.numel()
        turn = itertools.cycle([code.clone() for _ in range(COLD // size + 1)])
        bits = 4 if values == 16 else 6 if values == 64 else 8
        books = {"float32": book, "bfloat16": book.bfloat16(), "int8": (book * 40).clamp(-127, 127).to(torch.int8)}
        for kind, own in books.items():
            operator = codebook_linear.codebook_int8 if kind == "int8" else codebook_linear.codebook_linear
            inp, end = (x8, (outputs,)) if kind == "int8" else (x, (None, outputs))
            weight, rounded = own.float()[codes], x8.float() if kind == "int8" else x.to(own.dtype).float()
            close(operator(inp, code, own, *end).float(), functional.linear(rounded, weight))
            label = f"{bits} bits, {kind}"
            cases[label] = lambda op=operator, i=inp, t=turn, o=own, e=end: op(i, next(t), o, *e)
            sizes[label] = size
    found = measured(cases, ["torch"], target=0.02)
    for label, size in sizes.items():
        found[label] |= {"MB": round(size / 1e6, 1), "GB/s": round(size / found[label]["us"] / 1e3, 1)}
    for label in sizes:
        found[label]["of memory"] = round(found[label]["GB/s"] / found["memory"]["GB/s"], 2)
    yield "4096 x 9216, one row", found


def integer() -> Iterator[tuple[str, dict[str, Any]]]:
    """Convolutions 3 x 3 in whole numbers, behind an input quantizer, the quantizer's own time counted."""
    quantizer = Uniform(bits=8, form="symmetric", clip=3.0)
    inputs = Quantized(quantizer, quantizer.observe(None))
    for channels, outputs, size in CONV3X3:
        torch.manual_seed(0)
        weight, image = torch.randn(outputs, channels, 3, 3) / 30, torch.randn(1, channels, size, size)
        node = Node("aten.conv2d.default", (InputRef(0), TensorRef("weight"), None, (1, 1), (1, 1)))
        x = quantizer.forward(image, inputs.numbers)
        last = [t.to(memory_format=torch.channels_last) for t in (x, weight)]
        cases: CASES = {
            "torch": lambda x=x, w=weight: functional.conv2d(x, w, padding=1),
            "torch, channels last": lambda last=last: functional.conv2d(*last, padding=1),
        }
        steps = {
            "INQ, 5 bits": (Incremental(),),
            "ShiftCNN, 2 terms": (ShiftCNN(),),
            "codebook, 6 bits": (KMeans(bits=6), UniformWeight(bits=8, per="tensor")),
        }
        for label, own in steps.items():
            packed = pack_steps(weight, own)
            layer = integer_conv.serves(packed, node, inputs)
            assert layer is not None
            close(layer(x), functional.conv2d(x, unpack(packed), padding=1))
            cases[label] = lambda layer=layer, x=x: layer(x)
        label = f"3 x 3 {channels} to {outputs}, {size} x {size}"
        yield label, measured(cases, ["torch", "torch, channels last"])


def by_look_up() -> Iterator[tuple[str, dict[str, Any]]]:
    """Product quantization: a linear layer, one row, and convolutions 3 x 3; random codes and codewords."""
    torch.manual_seed(0)
    weight, x = torch.randn(4096, 9216), torch.randn(1, 9216)
    cases: CASES = {"torch": lambda: functional.linear(x, weight)}
    for width, k in ((8, 16), (4, 16), (3, 32)):
        layer = product.ProductLinear(
            torch.randint(0, k, (4096, 9216 // width)), torch.randn(9216 // width, k, width), 9216
        )
        turn = copies(layer)
        cases[f"runs of {width}, {k} codewords"] = lambda turn=turn: next(turn)(x)
    yield "linear 4096 x 9216, one row", measured(cases, ["torch"])
    for channels, outputs, size in CONV3X3:
        image, dense = torch.randn(1, channels, size, size), torch.randn(outputs, channels, 3, 3)
        last = [t.to(memory_format=torch.channels_last) for t in (image, dense)]
        cases = {
            "torch": lambda x=image, w=dense: functional.conv2d(x, w, padding=1),
            "torch, channels last": lambda last=last: functional.conv2d(*last, padding=1),
        }
        for width, k in ((8, 16), (8, 128), (4, 16)):
            runs = channels // width
            codes, book = torch.randint(0, k, (outputs, runs, 3, 3)), torch.randn(runs, k, width)
            conv = product.ProductConv(codes, book, channels, Window((3, 3), padding=(1, 1)))
            cases[f"runs of {width}, {k} codewords"] = lambda conv=conv, x=image: conv(x)
        yield f"3 x 3 {channels} to {outputs}, {size} x {size}", measured(cases, ["torch", "torch, channels last"])


PARTS: dict[str, Callable[[], Iterator[tuple[str, dict[str, Any]]]]] = {
    "conv1x1": lambda: conv("1 x 1", 1, CONV1X1),
    "conv3x3": lambda: conv("3 x 3", 3, CONV3X3),
    "deep_compression": deep_compression,
    "patterns": patterns,
    "codebook": codebook,
    "integer": integer,
    "by_look_up": by_look_up,
}


def table(results: dict[str, Any]) -> str:
    """A table a part: microseconds, and how many times as fast as torch's dense layer."""
    lines = []
    for part in PARTS:
        found = results.get(part)
        if not found:
            continue
        names = list(dict.fromkeys(name for own in found.values() for name in own))
        lines += [f"\n{part}\n", f"| | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
        for label, own in found.items():
            cells = [_cell(own[name]) if name in own else "" for name in names]
            lines.append(f"| {label} | {' | '.join(cells)} |")
        for name in names:
            ratios = [own[name]["ratio"] for label, own in found.items() if name in own and "90 %" in label]
            if ratios and not name.startswith("torch"):
                lines.append(f"\n{name}: median at 90 % {statistics.median(ratios):.2f} x")
    return "\n".join(lines)


def _cell(own: dict[str, float]) -> str:
    rate = f", {own['MB']:.1f} MB, {own['GB/s']:.0f} GB/s" if "MB" in own else ""
    rate += f", {100 * own['of memory']:.0f} % of memory" if "of memory" in own else ""
    return f"{own['us']:.0f} us, {own['ratio']:.2f} x{rate}"


def main() -> None:
    """Measures what is asked for, adds it to the results, prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in [] if options.table else options.parts:
        results[part] = {}
        for label, found in PARTS[part]():
            results[part][label] = found
            print(label, {name: (own["us"], own["ratio"]) for name, own in found.items()}, flush=True)
        results["variant"] = kernel.variant()
        results["cpus"] = os.cpu_count()
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
