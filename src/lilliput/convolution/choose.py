"""The fastest algorithm for a layer on this machine, under a limit of workspace: measured once and remembered."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from lilliput.convolution.contract import Algorithm
from lilliput.core.errors import FileError, LilliputWarning, MethodError
from lilliput.core.kernel import variant
from lilliput.core.method import find, find_path, methods, path_of
from lilliput.file.atomic import write_text
from lilliput.hardware.layer import Layer
from lilliput.hardware.roofline import this_machine

FAMILY = "convolution"

TORCH = "torch"
"""The name of torch's own convolution among the choices."""

ROOM = 1 << 30
"""Bytes of workspace and prepared weights together that are tried if no limit is given."""

ROUNDS, SLOW = 5, 3.0
"""How often each is timed, and how many times slower than the best one is dropped after its first time."""

COLD, LONG = 5.0, 0.005
"""How many times slower than the best, and how many seconds long, even its very first call drops it."""


class Choice(msgspec.Struct, frozen=True):
    """The fastest of what was measured.

    Attributes:
        name: such as `"convolution/winograd"`, or `"torch"` for torch's own.
        settings: of the algorithm.
        seconds: for one call, the median of five.
        beside: seconds of torch's own.
        workspace: bytes; 0 for torch, which doesn't say.
    """

    name: str
    settings: dict[str, int | bool | str]
    seconds: float
    beside: float
    workspace: int

    def algorithm(self) -> Algorithm | None:
        """Returns the algorithm; None for torch's own."""
        if self.name == TORCH:
            return None
        family, _, name = self.name.partition("/")
        if family != FAMILY:
            raise MethodError(f"'{self.name}' is no algorithm of convolution")
        made: Algorithm = msgspec.convert(dict(self.settings), find(FAMILY, name))
        return made


def choose(layer: Layer, limit: int | None = None, path: str | os.PathLike[str] | None = None) -> Choice:
    """Returns the fastest algorithm for a layer, measured on this machine the first time.

    Args:
        layer: sizes.
        limit: bytes of workspace that a call may take; torch's own is always allowed.
        path: file in which choices are remembered; by default `lilliput/convolution.json` in the user's cache.

    Raises:
        MethodError: a limit below 0.

    >>> import tempfile
    >>> layer = Layer(4, 4, size=(8, 8), kernel=(3, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     one, two = (choose(layer, path=f"{folder}/c.json") for _ in range(2))
    >>> one == two
    True
    """
    if limit is not None and limit < 0:
        raise MethodError(f"a limit of workspace must be 0 bytes or more, not {limit}")
    file = Path(path) if path is not None else _cache()
    held = _read(file)
    key = f"{_machine()}; {_described(layer)}; {'any' if limit is None else limit}"
    if key in held and _usable(held[key]):
        return held[key]
    found = measure(layer, limit)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Another process may have written in the meantime.
        write_text(file, msgspec.json.encode(_read(file) | {key: found}).decode())
    except (OSError, FileError) as error:
        warnings.warn(f"{file}: choices of convolution can't be remembered: {error}", LilliputWarning, stacklevel=2)
    return found


def fastest(layer: Layer, limit: int | None = None) -> Algorithm | None:
    """Returns the fastest algorithm for a layer, or None where torch's own is; see `choose`."""
    return choose(layer, limit).algorithm()


def candidates(layer: Layer, limit: int | None = None) -> list[Algorithm]:
    """Returns the settings of all algorithms that can compute a layer within a limit of workspace.

    >>> from lilliput.convolution.im2col import Im2col
    >>> Im2col() in candidates(Layer(4, 4, size=(8, 8), kernel=(3, 3)))
    True
    """
    found: list[Algorithm] = []
    for listing in methods(FAMILY):
        for algorithm in find_path(listing.path).choices():
            if algorithm.unsuited(layer) is not None:
                continue
            cost = algorithm.cost(layer)
            if cost.workspace + cost.prepared <= ROOM and (limit is None or cost.workspace <= limit):
                found.append(algorithm)
    return found


def at_best(algorithm: Algorithm, layer: Layer) -> float:
    """Returns the seconds that an algorithm takes at least: by its operations, and by the bytes of its weights.

    Args:
        algorithm: one that suits the layer.
        layer: sizes.
    """
    machine, cost = this_machine(), algorithm.cost(layer)
    work = (cost.multiplications + cost.additions) / 2
    return max(work / machine.peak, cost.prepared / machine.bandwidth)


def measure(layer: Layer, limit: int | None = None) -> Choice:
    """Times torch's own convolution and every candidate, one after the other in rounds, with torch's threads.

    The most promising go first; what even at this machine's full speed couldn't be faster than the best so far isn't
    tried, so that a layer takes some ten times as long as to run it.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(layer.batch, layer.channels, *layer.size, generator=generator)
    weight = torch.randn(layer.filters, layer.channels // layer.groups, *layer.kernel, generator=generator)
    with torch.no_grad():
        tried = candidates(layer, limit)
        bounds = [at_best(algorithm, layer) for algorithm in tried]
        race = _Race(lambda: _own(x, weight, layer))
        for number in sorted(range(len(tried)), key=bounds.__getitem__):
            if bounds[number] < race.best:
                race.enter(number, _prepared(tried[number], x, weight, layer))
        medians = race.medians()
    number = min(medians, key=lambda n: medians[n])
    beside = medians[-1]
    if number < 0:
        return Choice(TORCH, {}, beside, beside, 0)
    best: Any = tried[number]
    settings = {field.name: getattr(best, field.name) for field in dataclasses.fields(best)}
    return Choice(path_of(best), settings, medians[number], beside, best.cost(layer).workspace)


def _own(x: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def _prepared(algorithm: Algorithm, x: Tensor, weight: Tensor, layer: Layer) -> Callable[[], Tensor]:
    held = algorithm.prepare(weight, layer)
    return lambda: algorithm.run(x, held, layer)


class _Race:
    """Calls that are timed in turn; torch's own has the number -1.

    Args:
        own: torch's own.
    """

    def __init__(self, own: Callable[[], Tensor]) -> None:
        self.work: dict[int, Callable[[], Tensor]] = {}
        self.times: dict[int, list[float]] = {}
        self.best = math.inf
        self.enter(-1, own)

    def enter(self, number: int, call: Callable[[], Tensor]) -> None:
        """Times a call once; what is much slower than the best is in no further round."""
        cold = _timed(call)  # first calls set things up
        once = cold if cold > LONG and cold > COLD * self.best else _timed(call)
        if number < 0 or once <= SLOW * self.best:
            self.work[number], self.times[number] = call, [once]
        self.best = min(self.best, once)

    def medians(self) -> dict[int, float]:
        """Seconds, after all rounds."""
        running = [name for name in self.work if name < 0 or self.times[name][0] <= SLOW * self.best]
        for _ in range(ROUNDS - 1):
            for name in running:
                self.times[name].append(_timed(self.work[name]))
        return {name: statistics.median(self.times[name]) for name in running}


def _timed(call: Callable[[], Tensor]) -> float:
    """Seconds: the processor's where one thread works, which others hardly disturb."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    call()
    return clock() - begun


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lilliput" / "convolution.json"


def _read(file: Path) -> dict[str, Choice]:
    """What is remembered; nothing if there is no such file or it can't be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Choice])
    except (OSError, msgspec.DecodeError):
        return {}


def _usable(choice: Choice) -> bool:
    """Whether a remembered algorithm still exists with these settings."""
    try:
        choice.algorithm()
    except (MethodError, msgspec.ValidationError):
        return False
    return True


def _machine() -> str:
    """What times depend on: processor, threads, instruction set, torch."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{name}; {torch.get_num_threads()} threads; {variant()}; torch {torch.__version__}"


def _described(layer: Layer) -> str:
    return (
        f"{layer.batch}x{layer.channels}x{layer.size[0]}x{layer.size[1]}, {layer.filters} of "
        f"{layer.kernel[0]}x{layer.kernel[1]}, stride {layer.stride[0]},{layer.stride[1]}, "
        f"padding {layer.padding[0]},{layer.padding[1]}, dilation {layer.dilation[0]},{layer.dilation[1]}, "
        f"groups {layer.groups}"
    )
