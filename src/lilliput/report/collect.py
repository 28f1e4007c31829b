"""`Report`: everything worth telling of a compressed network, every size of it read from the written file."""

from __future__ import annotations

import copy
import fnmatch
import functools
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lilliput.core.activations import OUT
from lilliput.core.errors import DeviceError, FileError, ModelError
from lilliput.core.layers import ends_of, weights
from lilliput.core.packed import Packed, unpack
from lilliput.core.recipe import SKIPS, Recipe, Rule, step_data
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_text
from lilliput.file.layout import DTYPES
from lilliput.file.read import inspect
from lilliput.file.source import open_file
from lilliput.file.survey import describe
from lilliput.file.write import dumps
from lilliput.report import facts
from lilliput.report.distribution import Distribution, distribution, reach
from lilliput.report.facts import Stage

if TYPE_CHECKING:
    from lilliput.hardware.device import Device
    from lilliput.report.energy import Bill

VERSION = 1
KINDS = {"linear": "linear", "addmm": "linear", "embedding": "embedding", "bilinear": "linear"}
RECURRENT = ("lstm", "gru", "rnn")


@dataclass(frozen=True)
class Layer:
    """What became of one parameter or buffer.

    Attributes:
        name: in the state dict.
        kind: of its layer, such as `conv2d`; `vector` for biases and norms, `buffer`, or `matrix` where unknown.
        shape: its axes.
        dtype: of the unpacked weight, such as `F32`.
        parameters: how many numbers it holds.
        parameter_share: its part of all parameters and buffers, 0 to 1.
        bytes: that it takes in the file.
        byte_share: its part of the file, 0 to 1.
        bits: bits in the file for each number; None for an empty one.
        method: the methods that packed it, the outermost first, or `kept`.
        coding: how its parts are coded, such as `codes: rans`.
        settings: of the outermost method.
        steps: what the recipe asked for, such as `prune/magnitude sparsity=0.9, share/kmeans bits=5`.
        error: |w - original| / |original| in the Frobenius norm, or None where it isn't known: of a network that was
            trained with its recipe attached only the original, if it is at hand, can tell.
        trained: whether it was trained in its packed form, so that `error` is of packing and training together.
        why: the recipe's word on why, or why it was left as it was.
        activations: how what goes into its layer is quantized, such as `uniform 8 bits affine, scale 0.02, zero 0`,
            and after `comes out: ` how its result is, if it is.
        before: how the original's values are spread, where the original is known.
        after: how they are spread now.
        energy: its layer's for one input on the report's device, in that one's unit; None without a device.
        energy_before: the same of the original.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    parameter_share: float
    bytes: int
    byte_share: float
    bits: float | None
    method: str
    coding: str
    settings: Mapping[str, Any]
    steps: str
    error: float | None
    trained: bool
    why: str
    before: Distribution | None
    after: Distribution | None
    activations: str = ""
    energy: float | None = None
    energy_before: float | None = None


@dataclass(frozen=True)
class Summary:
    """The file as a whole.

    Attributes:
        file: its name, or "" if it isn't written yet.
        bytes: its size.
        original: bytes of the uncompressed tensors.
        ratio: original / bytes.
        parameters: numbers in all parameters and buffers.
        bits: of the file for each of them.
        before: the user's metric of the original, or None.
        after: the same of the compressed network, or None.
        parts: bytes of `header`, `manifest`, `graph`, `streams` (coded integers) and `floats`; their sum is `bytes`.
        nodes: operators of the embedded graph, or None where there is no graph.
        digest: SHA-256 of the file, in hexadecimal.
        macs: multiplications for one input before and after the cuts of a recipe; None where nothing was cut.
    """

    file: str
    bytes: int
    original: int
    ratio: float
    parameters: int
    bits: float
    before: float | None
    after: float | None
    parts: Mapping[str, int]
    nodes: int | None
    digest: str
    macs: tuple[int, int] | None = None


class Report:
    """What was done to a network, what it cost and what it bought; `save` writes it as a page or as JSON.

    Args:
        artifact: the compressed network.
        original: the network it was made of, with its weights: then each layer's values are shown before and after.
        path: the written file; without it, the bytes that would be written are counted.
        device: energy of each layer on it is told too, before and after; needs the original, and a file with a graph.

    Raises:
        FileError: if `path` is no Lilliput file.
        ModelError: if `original` is another model.

    >>> from lilliput.train.compress import compress
    >>> report = Report(compress(nn.Linear(64, 64), Recipe.preset("int8")))
    >>> report.summary.ratio > 3, report.layers[0].method
    (True, 'quantize/uniform')
    """

    def __init__(
        self,
        artifact: Artifact,
        original: nn.Module | None = None,
        path: str | PathLike[str] | None = None,
        device: Device | None = None,
    ) -> None:
        self.artifact = artifact
        self.device = device
        self.original = original
        self.path = None if path is None else Path(path)
        self.notes: list[str] = [
            f"{path} can't be carried out here: it, or a method that it names, isn't installed"
            for path in artifact.recipe.absent
        ]

    @functools.cached_property
    def _file(self) -> dict[str, Any]:
        if self.path is not None:
            return inspect(self.path)
        data = dumps(self.artifact)
        return describe(open_file(io.BytesIO(data), len(data)))

    @functools.cached_property
    def summary(self) -> Summary:
        """The file as a whole."""
        file = self._file
        entries = file["weights"].values()
        numbers = sum(math.prod(entry["shape"]) for entry in entries)
        dense = sum(math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize for entry in entries)
        told = facts.number(self.artifact.facts.get("original"))
        original = int(told) if told and told > 0 else dense
        before, after = facts.accuracy(self.artifact.facts)
        return Summary(
            file=self.path.name if self.path else "",
            bytes=file["size"],
            original=original,
            ratio=original / file["size"],
            parameters=numbers,
            bits=8 * file["size"] / max(numbers, 1),
            before=before,
            after=after,
            parts={part: file[part] for part in ("streams", "floats", "graph", "manifest", "header")},
            nodes=file["nodes"],
            digest=file["digest"],
            macs=facts.macs(self.artifact.facts),
        )

    @functools.cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The stages on the way, as the facts tell of them."""
        return facts.stages_of(self.artifact.facts)

    @functools.cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every parameter and buffer, in the file's order."""
        references, kinds = self._references(), kinds_of(self.artifact)
        if self.original is not None:
            kinds |= {weight.name: weight.kind for weight in weights(self.original)}
        told = _Told(facts.numbers(self.artifact.facts, "error"), facts.notes(self.artifact.facts), kinds, references)
        return tuple(self._layer(name, value, told) for name, value in self.artifact.weights.items())

    @functools.cached_property
    def energy(self) -> Bill | None:
        """Energy before and after on the device; None without a device, and where it can't be told."""
        if self.device is None:
            return None
        if self.original is None or self.artifact.graph is None:
            self.notes.append("energy: needs the original network, and a file that holds a graph")
            return None
        from lilliput.report.energy import bill

        try:
            return bill(self.artifact, self.original, self.device)
        except (ModelError, DeviceError) as error:
            self.notes.append(f"energy: {error}")
            return None

    @functools.cached_property
    def recipe(self) -> str:
        """The recipe as TOML."""
        return self.artifact.recipe.dumps()

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain data: what `report.json` holds."""
        layers = [asdict(layer) for layer in self.layers]
        return {
            "format": "lilliput-report",
            "version": VERSION,
            "summary": asdict(self.summary),
            "stages": [asdict(stage) for stage in self.stages],
            "layers": layers,
            "energy": None if self.energy is None else asdict(self.energy),
            "kept": facts.notes(self.artifact.facts),
            "cuts": self._file["cuts"],
            "blocks": self._file["blocks"],
            "aliases": dict(self.artifact.aliases),
            "notes": self.notes,
            "recipe": self.recipe,
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the report, whole or not at all: a page that needs nothing else (`.html`), or JSON (`.json`).

        Raises:
            FileError: another ending, or a file that can't be written.
        """
        ending = Path(path).suffix.lower()
        if ending in {".html", ".htm"}:
            from lilliput.report.html import render

            write_text(path, render(self))
        elif ending == ".json":
            write_text(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        else:
            raise FileError(f"{path}: a report is written as .html or .json")

    def _references(self) -> dict[str, Tensor]:
        """The original's tensors in the form in which they were packed."""
        if self.original is None:
            return {}
        from lilliput.run.compare import cut, folded
        from lilliput.run.load import fill

        fill(copy.deepcopy(self.original), self.artifact)  # refuses the file of another model
        return cut(self.artifact, folded(self.artifact, self.original, notes=self.notes))

    def _ends(self, told: _Told) -> dict[str, frozenset[str]]:
        shapes = {name: self._file["weights"][name]["shape"] for name in self.artifact.weights}
        return ends_of({n: told.kinds.get(n) or ("vector" if len(s) < 2 else "matrix") for n, s in shapes.items()})

    def _layer(self, name: str, value: Packed | Tensor, told: _Told) -> Layer:
        entry, summary = self._file["weights"][name], self.summary
        tensor = unpack(value)
        kind = told.kinds.get(name) or ("vector" if tensor.ndim < 2 else "matrix")
        rule = rule_of(self.artifact.recipe, name, kind, self._ends(told).get(name, frozenset()))
        path = name.rpartition(".")[0]
        ends = {"": "", OUT: "; comes out: "} if tensor.ndim >= 2 else {}
        quantizers = {path + end: start for end, start in ends.items() if path + end in self.artifact.quantizers}
        before = told.references.get(name)
        fits = before is not None and before.shape == tensor.shape
        limit = reach(before) if before is not None and before.dtype.is_floating_point else None
        codings = {leaf["part"]: leaf["coding"] for leaf in entry["leaves"]}
        packed = isinstance(value, Packed)
        spent = self.energy.layers.get(name.removesuffix(".weight")) if self.energy else None
        return Layer(
            name=name,
            kind=kind,
            shape=tuple(entry["shape"]),
            dtype=entry["dtype"],
            parameters=tensor.numel(),
            parameter_share=tensor.numel() / max(summary.parameters, 1),
            bytes=entry["bytes"],
            byte_share=entry["bytes"] / summary.bytes,
            bits=8 * entry["bytes"] / tensor.numel() if tensor.numel() else None,
            method=entry.get("method", "kept"),
            coding=", ".join(f"{part}: {coding}" if part else coding for part, coding in codings.items()),
            settings=dict(value.settings) if isinstance(value, Packed) else {},
            steps=steps_text(rule) if rule else "",
            error=told.errors.get(name, relative(tensor, before) if before is not None and packed and fits else None),
            trained=packed and self.artifact.facts.get("trained") is True,
            why=told.notes.get(name) or (rule.why if rule else ""),
            activations="".join(
                start + self.artifact.quantizers[key].describe() for key, start in quantizers.items()
            ).removeprefix("; "),
            before=None if before is None else distribution(before, limit),
            after=distribution(tensor, limit),
            energy=sum(spent.after.values()) if spent else None,
            energy_before=sum(spent.before.values()) if spent else None,
        )


@dataclass(frozen=True)
class _Told:
    """What is known of the layers besides the file's entries, each by name."""

    errors: Mapping[str, float]
    notes: Mapping[str, str]
    kinds: Mapping[str, str]
    references: Mapping[str, Tensor]


def relative(value: Tensor, original: Tensor) -> float:
    """Returns |value - original| / |original| in the Frobenius norm."""
    size = float(original.double().norm())
    return float((value.double() - original.double()).norm()) / (size or 1.0)


def rule_of(recipe: Recipe, name: str, kind: str, ends: frozenset[str] = frozenset()) -> Rule | None:
    """Returns the rule that a weight of this name and kind met, as far as the file tells.

    Args:
        recipe: what was done.
        name: of the weight.
        kind: of its layer.
        ends: whether it is the model's first or last; see `core.layers.ends_of`.
    """
    for rule in recipe.rules:
        if (kind in {"vector", "buffer"} and rule.layers == "*") or not SKIPS[rule.skip].isdisjoint(ends):
            continue
        if fnmatch.fnmatchcase(name, rule.match) and fnmatch.fnmatchcase(kind, rule.layers):
            return rule
    return None


def steps_text(rule: Rule) -> str:
    """Returns a rule's steps in a line, such as `prune/magnitude sparsity=0.9, share/kmeans bits=5`."""
    parts = []
    for step in rule.steps:
        data = step_data(step)
        parts.append(" ".join([data.pop("method"), *(f"{key}={value}" for key, value in data.items())]))
    return ", ".join(parts)


def kinds_of(artifact: Artifact) -> dict[str, str]:
    """Returns the kind of each weight of two or more axes that the graph uses in a layer it knows."""
    from lilliput.graph.ir import TensorRef

    kinds: dict[str, str] = {}
    for node in artifact.graph.nodes if artifact.graph else ():
        operator = node.operator.partition(".")[2].partition(".")[0]  # none in those of our own, such as getitem
        kind = KINDS.get(operator) or (operator if operator.startswith("conv") and operator != "convolution" else "")
        kind = "recurrent" if operator.startswith(RECURRENT) else kind
        for ref in node.refs() if kind else ():
            if isinstance(ref, TensorRef) and ref.name in artifact.weights:
                value = artifact.weights[ref.name]
                if len(value.shape) >= 2:
                    kinds.setdefault(ref.name, kind)
    return kinds
