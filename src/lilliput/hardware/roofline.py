"""The roofline: which of arithmetic and memory holds a layer back, and how fast it can be at best."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional

from lilliput.core.errors import DeviceError
from lilliput.hardware.device import Device
from lilliput.hardware.energy import Costs, run_length
from lilliput.hardware.layer import Layer


def attainable(intensity: float, peak: float, bandwidth: float) -> float:
    """Returns operations a second: min(peak, bandwidth * intensity) (Williams, Waterman & Patterson 2009).

    Args:
        intensity: operations for each byte that is moved.
        peak: operations a second.
        bandwidth: bytes a second.

    Raises:
        DeviceError: one of them isn't positive.

    >>> attainable(0.5, 100.0, 10.0), attainable(50.0, 100.0, 10.0)
    (5.0, 100.0)
    """
    for name, value in (("peak", peak), ("bandwidth", bandwidth), ("intensity", intensity)):
        if not value > 0:
            raise DeviceError(f"{name} must be positive, it is {value}")
    return min(peak, bandwidth * intensity)


def ridge(device: Device) -> float:
    """Returns the multiply-accumulates for each byte above which arithmetic is the bound.

    >>> int(ridge(Device.load("tpu_v1")))
    1349
    """
    return device.peak / device.bandwidth


def moved(layer: Layer, activations: bool = True) -> float:
    """Returns the bytes that must be moved: each number once, run-length coded where it is sparse and that is smaller.

    Args:
        layer: with bits and densities.
        activations: whether inputs and outputs count; the TPU's own roofline counts weights alone.
    """
    bits = layer.weights * layer.weight_bits * run_length(layer.weight_bits, layer.weight_density)
    if activations:
        bits += layer.inputs * layer.input_bits * run_length(layer.input_bits, layer.input_density)
        bits += layer.outputs * layer.output_bits * run_length(layer.output_bits, layer.output_density)
    return bits / 8


@dataclass(frozen=True)
class Bound:
    """What holds a layer back on a device.

    Attributes:
        macs: multiply-accumulates that aren't skipped.
        bytes: that must be moved.
        intensity: multiply-accumulates for each byte; twice that in the floating-point operations that others count.
        by: `"compute"` or `"memory"`.
        seconds: at least so long.
    """

    macs: float
    bytes: float
    intensity: float
    by: str
    seconds: float


def bound(layer: Layer, device: Device, skips: bool = False) -> Bound:
    """Returns the bound of a layer.

    Args:
        layer: with bits and densities, which change the bytes.
        device: gives peak and bandwidth.
        skips: the device does no work for products of zeros.

    >>> fc = Layer(1024, 1024, weight_bits=32, input_bits=32, output_bits=32)
    >>> found = bound(fc, Device.load("phone_cpu"))
    >>> found.by, round(2 * found.intensity, 2)
    ('memory', 0.5)
    """
    macs = layer.macs * (layer.weight_density * layer.input_density if skips else 1.0)
    size = moved(layer)
    arithmetic, memory = macs / device.peak, size / device.bandwidth
    by = "compute" if arithmetic >= memory else "memory"
    return Bound(macs, size, macs / size, by, max(arithmetic, memory))


def measured(layer: Layer, seconds: float = 0.05) -> float:
    """Times a layer on this machine: float32 by torch, with its threads; beside `bound` on `this_machine()`.

    Args:
        layer: its sizes; bits and zeros don't count here.
        seconds: to repeat it for.

    Returns:
        Seconds, the median of the faster half.

    >>> measured(Layer(8, 8, size=(9, 9), kernel=(3, 3)), 0.001) > 0
    True
    """
    weight = torch.rand(layer.filters, layer.channels // layer.groups, *layer.kernel)
    x = torch.rand(layer.batch, layer.channels, *layer.size)
    if layer.size == layer.kernel == (1, 1) and layer.groups == 1:
        flat, matrix = x.flatten(1), weight.flatten(1)
        work: Callable[[], object] = lambda: functional.linear(flat, matrix)  # noqa: E731
    else:
        window = layer.stride, layer.padding, layer.dilation, layer.groups
        work = lambda: functional.conv2d(x, weight, None, *window)  # noqa: E731
    with torch.no_grad():
        return _fastest(work, seconds)


@cache
def this_machine() -> Device:
    """Measures the processor that this runs on, with torch's threads: fp32 products of matrices, and copying.

    Takes about half a second; the energies are those of 45 nm, whatever the processor was made in.
    """
    threads = torch.get_num_threads()
    size = 768
    left, right = torch.rand(size, size), torch.rand(size, size)
    product = torch.empty(size, size)
    peak = size**3 / _fastest(lambda: torch.mm(left, right, out=product), 0.25)
    large = torch.zeros(1 << 24)
    target = torch.empty_like(large)
    bandwidth = 2 * large.numel() * 4 / _fastest(lambda: target.copy_(large), 0.25)
    cached = 0
    with contextlib.suppress(ValueError, OSError, AttributeError):
        cached = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    cached = cached if cached > 0 else 1 << 20
    return Device(
        "this",
        threads,
        1,
        512,
        cached,
        32,
        peak / threads,
        bandwidth,
        dataflow="compulsory",
        costs=Costs.of_45_nm(cached),
        about=f"measured: {threads} threads, products of {size} x {size} fp32 matrices, copies of 64 MiB",
    )


def _fastest(work: Callable[[], object], seconds: float) -> float:
    """The median of the faster half of the times of a piece of work, repeated for so long.

    A single thread's own time is taken, so that what else runs on the machine doesn't count.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        begun = clock()
        work()
        times.append(clock() - begun)
    return statistics.median(sorted(times)[: math.ceil(len(times) / 2)])
