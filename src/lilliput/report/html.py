"""The report as one page that opens offline: the template, filled with escaped text and pictures of our own."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

import lilliput
from lilliput.hardware.energy import LEVELS
from lilliput.report import charts, facts, text
from lilliput.report.charts import Item

if TYPE_CHECKING:
    from lilliput.report.collect import Layer, Report
    from lilliput.report.energy import Bill

TONES = 6
"""Colours of the page; further methods share the last."""
MOST_AREAS = 40
MOST_ERRORS = 25
REST = -1
NOTABLE = 0.01
"""Part of the file from which a bias or norm has a line of its own."""


@dataclass(frozen=True)
class Legend:
    """One line of a legend: a method, the number of its colour, and what it has in the file."""

    label: str
    tone: int
    text: str


def render(report: Report) -> str:
    """Returns the page.

    Everything that came from the file is escaped; a content security policy forbids the page to fetch anything, or
    to run any script but its own.
    """
    script = _resource("sort.js")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "size": text.size_text,
        "digits": text.digits,
        "percent": text.percent,
        "metric": text.metric,
        "shape": text.shape_text,
        "printable": text.printable,
    }
    tones = tones_of(report.layers)
    layers, rest = _divided(report.layers)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(_resource("template.html")).render(
        summary=report.summary,
        stages=report.stages,
        layers=layers,
        rest=rest,
        kept=facts.notes(report.artifact.facts),
        notes=report.notes,
        tied=_tied(report),
        recipe=report.recipe,
        bill=report.energy,
        levels=[Legend(part, tone, "") for tone, part in enumerate(("arithmetic", *LEVELS))],
        version=lilliput.__version__,
        legend=_legend(report, tones),
        pictures=_pictures(report, tones),
        spread=lambda layer: Markup(charts.spread(layer.before, layer.after, layer.name)),
        tone=lambda layer: tones.get(layer.method, REST),
        has_before=any(layer.before for layer in layers),
        style=Markup(_resource("style.css")),
        script=Markup(script),
        digest=digest,
    )


def tones_of(layers: Sequence[Layer]) -> dict[str, int]:
    """Returns the number of each method's colour, the one with most bytes first; `kept` has one of its own."""
    totals: dict[str, int] = {}
    for layer in layers:
        if layer.method != "kept":
            totals[layer.method] = totals.get(layer.method, 0) + layer.bytes
    order = sorted(totals, key=lambda method: -totals[method])
    return {method: min(index, TONES - 2) for index, method in enumerate(order)} | {"kept": TONES - 1}


def notable(layer: Layer) -> bool:
    """Whether a layer is worth a line: not so the many biases, norms and buffers, unless the file is made of them."""
    return len(layer.shape) >= 2 or layer.byte_share >= NOTABLE


def _divided(layers: Sequence[Layer]) -> tuple[list[Layer], dict[str, Any]]:
    """Layers worth a line each, and the sum of the others."""
    own = [layer for layer in layers if notable(layer)]
    small = [layer for layer in layers if not notable(layer)]
    rest = {
        "count": len(small),
        "methods": list(dict.fromkeys(layer.method for layer in small)),
        "parameters": sum(layer.parameters for layer in small),
        "bytes": sum(layer.bytes for layer in small),
        "parameter_share": sum(layer.parameter_share for layer in small),
        "byte_share": sum(layer.byte_share for layer in small),
    }
    return own, rest


def _tied(report: Report) -> dict[str, str]:
    """Further names of tied weights, by the name under which each is stored."""
    names: dict[str, list[str]] = {}
    for alias, name in report.artifact.aliases.items():
        names.setdefault(name, []).append(alias)
    return {name: ", ".join(aliases) for name, aliases in names.items()}


def _legend(report: Report, tones: dict[str, int]) -> list[Legend]:
    lines = []
    for method, tone in tones.items():
        size = sum(layer.bytes for layer in report.layers if layer.method == method)
        if size:
            lines.append(Legend("kept as it was" if method == "kept" else method, tone, text.size_text(size)))
    parts = report.summary.parts
    rest = parts["graph"] + parts["manifest"] + parts["header"]
    return [*lines, Legend("graph, names and header", REST, text.size_text(rest))]


def _pictures(report: Report, tones: dict[str, int]) -> dict[str, Markup]:
    areas = _areas(report, tones)
    by_size = sorted(report.layers, key=lambda layer: -layer.parameters)
    big = by_size[:MOST_AREAS]
    weights = [
        Item(la.name.removesuffix(".weight"), la.parameters, text.percent(la.parameter_share), tones[la.method])
        for la in big
    ]
    others = sum(layer.parameters for layer in by_size[MOST_AREAS:])
    if others:
        weights.append(Item(f"{len(by_size) - MOST_AREAS} others", others, f"{others:,} numbers", REST))
    order = {item.label: index for index, item in enumerate(weights)}
    shares = sorted(areas, key=lambda item: (order.get(item.label, len(order)), -item.value))
    worst = sorted(
        (la for la in report.layers if la.error is not None and notable(la)), key=lambda la: -(la.error or 0)
    )[:MOST_ERRORS]
    errors = [Item(la.name, la.error or 0, text.percent(la.error), tones[la.method]) for la in worst]
    made = {
        "map": charts.treemap(areas, "Where the bytes of the file are"),
        "weights": charts.strip(weights, "Share of the parameters by layer"),
        "bytes": charts.strip(shares, "Share of the file by layer"),
        "errors": charts.bars(errors, "Relative error of each layer's weights, worst first", 230) if errors else "",
        "stages": charts.bars(_stage_items(report), "Size of the file by stage", 170) if report.stages else "",
    }
    if report.energy is not None:
        made["energy"] = energy_picture(report.energy)
    return {name: Markup(picture) for name, picture in made.items()}


def energy_picture(bill: Bill) -> str:
    """Draws the energy of each layer by part, before above after; of many layers those that take the most."""
    order = sorted(bill.layers, key=lambda name: -sum(bill.layers[name].before.values()))[:MOST_AREAS]

    def bar(parts: Mapping[str, float]) -> list[Item]:
        names = ("arithmetic", *LEVELS)
        return [
            Item(name, parts.get(name, 0.0), f"{text.digits(parts.get(name, 0.0) / 1e6)} million {bill.unit}", tone)
            for tone, name in enumerate(names)
        ]

    rows = [(name, [bar(s.before), bar(s.after)]) for name, s in bill.layers.items() if name in order]
    return charts.levels(rows, f"Energy of each layer on {bill.device}, before and after")


def standalone(picture: str) -> str:
    """Returns a picture as a file of its own: with the colours of the page, and what they stand for below."""
    style = _resource("style.css")
    colours = "".join(line for line in style.splitlines() if line.strip().startswith("--t0"))
    rules = [f":root {{ --ink: #16191d; --soft: #5b626b; {colours.split('}')[0]} }}"]
    rules += [line for line in style.splitlines() if line.startswith((".t0", ".t4", ".bar", "svg text"))]
    parts = "; ".join(("arithmetic", *LEVELS))
    note = f"<desc>From left to right in each bar: {parts}.</desc>"
    head, rest = picture.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{note}<style>{"".join(rules)}</style>{rest}'


def _areas(report: Report, tones: dict[str, int]) -> list[Item]:
    ordered = sorted(report.layers, key=lambda layer: -layer.bytes)
    items = [
        Item(
            la.name.removesuffix(".weight"),
            la.bytes,
            f"{text.size_text(la.bytes)}, {text.digits(la.bits)} bits each",
            tones[la.method],
        )
        for la in ordered[:MOST_AREAS]
    ]
    others = sum(layer.bytes for layer in ordered[MOST_AREAS:])
    if others:
        items.append(Item(f"{len(ordered) - MOST_AREAS} others", others, text.size_text(others), REST))
    told = sum(layer.bytes for layer in ordered)
    parts = report.summary.parts
    # Constants of the graph stand among the streams and floats, and belong to no layer.
    constants = parts["streams"] + parts["floats"] - told
    for label, size in (
        ("graph", parts["graph"]),
        ("names and recipe", parts["manifest"]),
        ("header", parts["header"]),
    ):
        items.append(Item(label, size, text.size_text(size), REST))
    if constants > 0:
        items.append(Item("constants of the graph", constants, text.size_text(constants), REST))
    return items


def _stage_items(report: Report) -> list[Item]:
    items = []
    for stage in report.stages:
        words = text.size_text(stage.bytes)
        if stage.accuracy is not None:
            words += f"  ·  {text.metric(stage.accuracy)}"
        items.append(Item(stage.name, stage.bytes, words, 0))
    return items


def _resource(name: str) -> str:
    return (importlib.resources.files("lilliput.report") / name).read_text("utf-8")
