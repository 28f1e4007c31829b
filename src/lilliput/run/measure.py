"""`bench`: latency, memory and size of a compressed network in every engine that is installed, beside the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.data import call
from lilliput.core.errors import LilliputError, ModelError
from lilliput.core.method import find, methods
from lilliput.core.recipe import Recipe
from lilliput.export.quantized import without_levels
from lilliput.file.artifact import Artifact
from lilliput.file.message import one_line
from lilliput.file.read import read
from lilliput.file.write import size
from lilliput.graph.ir import Graph
from lilliput.graph.structure import join
from lilliput.run.choice import GAIN
from lilliput.run.clock import race
from lilliput.run.examples import example_inputs
from lilliput.run.load import load
from lilliput.run.weigh import weigh
from lilliput.train.compress import compress

REFERENCES = ("onnxruntime", "dense")
"""Engines in which the uncompressed network is the yardstick: the first that is installed."""


@dataclass(frozen=True)
class Measured:
    """One network in one engine.

    Attributes:
        network: `"compressed"` or `"uncompressed"`.
        engine: its name.
        seconds: median latency of a call.
        speed: how many times as fast as the yardstick.
        memory: bytes that a process holds more for it; None where that wasn't found out.
        size: bytes of its file in the engine's own format, or of Lilliput's.
    """

    network: str
    engine: str
    seconds: float
    speed: float
    memory: int | None
    size: int | None


@dataclass(frozen=True)
class Bench:
    """What `bench` found.

    Attributes:
        rows: networks and engines, fastest first.
        yardstick: the engine in which the uncompressed network counts as 1.
        threads: of torch and of the engines.
        inputs: their shapes.
        layers: what each layer runs on in `native`.
        notes: what isn't as it could be; engines that can't run the network, and why.
    """

    rows: tuple[Measured, ...]
    yardstick: str
    threads: int
    inputs: tuple[tuple[int, ...], ...]
    layers: tuple[str, ...]
    notes: tuple[str, ...]


def bench(
    file: str | PathLike[str] | Artifact,
    model: nn.Module | None = None,
    inputs: Any = None,
    *,
    engines: Sequence[str] = (),
    threads: int | None = None,
    rounds: int | None = None,
    memory: bool = True,
) -> Bench:
    """Measures one compressed network in every installed engine, beside the uncompressed one in the same engines.

    All of them take turns, and medians are compared: with one thread of the processor's time, else of the clock's.

    Args:
        file: of Lilliput, with a graph; or an artifact.
        model: the original; without it the compressed network with floats for weights and activations stands for it,
            which is smaller than the original where channels were cut.
        inputs: a tensor, tuple or dict; by default a batch of one of the shapes that the graph takes.
        engines: which; by default all that are installed.
        threads: of torch and of the engines; by default as many as torch has.
        rounds: how many; by default some seconds' worth.
        memory: find out what memory each takes, in a process of its own.

    Raises:
        ModelError: the file holds no graph, or no engine runs the network.

    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    >>> made = compress(net, Recipe.preset("int8"), example=torch.rand(1, 8))
    >>> found = bench(made, net, engines=["dense"], memory=False)
    >>> found.yardstick, sorted(row.network for row in found.rows)
    ('dense', ['compressed', 'uncompressed'])
    """
    artifact = file if isinstance(file, Artifact) else read(file)
    if artifact.graph is None:
        raise ModelError("the file holds no graph, so that no engine can run it: compress with data or example=")
    names = list(engines) or _usual()
    given = arguments(artifact.graph, example_inputs(artifact.graph)) if inputs is None else inputs
    whole = uncompressed(artifact, model, given)
    notes: list[str] = []
    with _threads(threads), torch.no_grad():
        nets = _nets({"compressed": artifact, "uncompressed": whole}, names, given, notes)
        calls = {" ".join(key): _call(net, given) for key, net in nets.items()}
        seconds = race(calls, seconds=4.0, rounds=rounds)
        used = torch.get_num_threads()
    yardstick = next((name for name in (*REFERENCES, *names) if ("uncompressed", name) in nets), "")
    unit = seconds.get(f"uncompressed {yardstick}", float("nan"))
    sizes = {"compressed": _sizes(artifact, names), "uncompressed": _sizes(whole, names)}
    weights = _memory({"compressed": artifact, "uncompressed": whole}, list(nets), used) if memory else {}
    rows = [
        Measured(
            *key, seconds[" ".join(key)], unit / seconds[" ".join(key)], weights.get(key), sizes[key[0]].get(key[1])
        )
        for key in nets
    ]
    rows.sort(key=lambda row: row.seconds)
    layers, words = _told(nets.get(("compressed", "native")), rows)
    shapes = tuple(tuple(tensor.shape) for tensor in _tensors(given))
    return Bench(tuple(rows), yardstick, used, shapes, layers, (*notes, *words))


def _usual() -> list[str]:
    """The engines that are measured unless others are asked for."""
    names = [line.path.rpartition("/")[2] for line in methods("run") if line.kind == "engine"]
    return [name for name in names if getattr(find("run", name), "timed", True)]


def _told(native: Any, rows: Sequence[Measured]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What layers run on, and notes."""
    fast = max((row.speed for row in rows if row.network == "compressed"), default=0.0)
    words = f"no gain: the compressed network is at best {fast:.2f} times as fast as the uncompressed one"
    notes = (words,) if fast < GAIN else ()
    if native is None:
        return (), notes
    return tuple(map(str, native.chosen.layers)), (*notes, *native.chosen.notes)


def _nets(
    artifacts: Mapping[str, Artifact], names: Sequence[str], given: Any, notes: list[str]
) -> dict[tuple[str, str], nn.Module]:
    """Each network in each engine that can run it."""
    nets = {}
    for network, artifact in artifacts.items():
        for name in names:
            net = _loaded(artifact, name, given, f"{network} in {name}", notes)
            if net is not None:
                nets[network, name] = net
    if not nets:
        raise ModelError(f"no engine runs the network: {'; '.join(notes)}")
    return nets


def uncompressed(artifact: Artifact, model: nn.Module | None, inputs: Any) -> Artifact:
    """Returns the network with floats, as an artifact.

    Args:
        artifact: compressed, with a graph.
        model: the original, or None: then the compressed one with its weights unpacked.
        inputs: an example.
    """
    if model is not None:
        whole = compress(model, Recipe(), example=inputs)
        if whole.graph is None:
            raise ModelError(f"the model can't be written as a graph: {dict(whole.facts['notes']).get('graph')}")
        return whole
    assert artifact.graph is not None
    weights = {name: artifact.weight(name) for name in artifact.weights}
    return replace(artifact, weights=weights, graph=without_levels(artifact.graph), quantizers={}, recipe=Recipe())


def reference(artifact: Artifact) -> nn.Module:
    """Returns a network in the engine in which the uncompressed one is the yardstick.

    Args:
        artifact: with a graph.
    """
    for name in REFERENCES[:-1]:
        try:
            return load(artifact, engine=name)
        except LilliputError:
            continue
    return load(artifact, engine=REFERENCES[-1])


def arguments(graph: Graph, tensors: Sequence[Tensor]) -> Any:
    """Returns tensors as the arguments that a graph's network takes, a tuple or a dict.

    Args:
        graph: any graph.
        tensors: one for each input.
    """
    if not graph.call:
        return tuple(tensors)
    given = {name: join(tree, lambda ref: tensors[ref.index]) for name, tree in graph.call}  # type: ignore[union-attr]
    # `*args` have numbers for names.
    return tuple(given.values()) if any(name.isdigit() for name in given) else given


def _loaded(artifact: Artifact, name: str, given: Any, what: str, notes: list[str]) -> nn.Module | None:
    """The network in an engine; None, and a note, if it can't run it."""
    try:
        net = load(artifact, engine=find("run", name)())
        call(net, given)
    except (LilliputError, RuntimeError, ImportError) as error:
        notes.append(f"{what}: {one_line(error)}")
        return None
    return net


def _call(net: nn.Module, given: Any) -> Any:
    return lambda: call(net, given)


@contextmanager
def _threads(wanted: int | None) -> Any:
    before = torch.get_num_threads()
    try:
        if wanted is not None:
            torch.set_num_threads(wanted)
        yield
    finally:
        torch.set_num_threads(before)


def _sizes(artifact: Artifact, names: Sequence[str]) -> dict[str, int]:
    """Bytes of the file that each engine reads: its own format if it has one, else ours."""
    own = size(artifact)
    found = {}
    for name in names:
        engine = find("run", name)()
        export = getattr(engine, "export", None)
        if export is None:
            found[name] = own
            continue
        with TemporaryDirectory() as folder:
            try:
                export(artifact, Path(folder) / f"net{getattr(engine, 'suffix', '')}")
            except (LilliputError, RuntimeError):
                continue
            found[name] = sum(path.stat().st_size for path in Path(folder).iterdir())
    return found


def _memory(
    artifacts: Mapping[str, Artifact], which: Sequence[tuple[str, str]], threads: int
) -> dict[tuple[str, str], int | None]:
    found = {}
    with TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.safetensors" for name in artifacts}
        for name, artifact in artifacts.items():
            artifact.save(paths[name])
        for network, engine in which:
            found[network, engine] = weigh(paths[network], engine, threads)
    return found


def _tensors(given: Any) -> list[Tensor]:
    from lilliput.graph.structure import tensors_in

    return tensors_in(given)
