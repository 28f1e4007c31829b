"""`lilliput sensitivity`: how much each layer alone can be pruned."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from lilliput.cli import parameters, terminal


def sensitivity(
    model: parameters.Model,
    *,
    given: parameters.Along = parameters.NOTHING,
    method: Annotated[str, Parameter(help="A criterion, by the name that it has in a recipe.")] = "prune/magnitude",
    pattern: Annotated[str, Parameter(help="What it removes: unstructured, filter, 2:4, ...")] = "",
    sparsity: Annotated[list[float] | None, Parameter(help="Sparsity to try; give it once for each.")] = None,
    max_drop: Annotated[
        float | None, Parameter(help="Also tell how far each layer can go within this drop (or divergence).")
    ] = None,
    json: parameters.Json = False,
) -> None:
    """Prune each layer alone at several sparsities, and tell your metric, or how much the outputs change.

    lilliput sensitivity net.py:build --weights net.pth --data net.py:batches --evaluate net.py:accuracy
    """
    from dataclasses import asdict

    from lilliput.cli import inputs, sources
    from lilliput.core.recipe import step_of
    from lilliput.search.scan import SPARSITIES
    from lilliput.search.scan import sensitivity as scanned

    settings = {"method": method} | ({"pattern": pattern} if pattern else {})
    step = step_of(settings, "--method")
    example = inputs.inputs_of(given.input)
    with terminal.working("loading"):
        network, batches, metric = sources.loaded(model, given, example)
    if batches is None and example is not None:
        batches = [example]
    if batches is None and metric is None:
        raise terminal.UsageError("give --data, --input or --evaluate, by which layers are judged")
    with terminal.working("pruning") as progress:
        tried = tuple(sparsity or SPARSITIES)
        found = scanned(network, batches, metric, method=step, sparsities=tried, progress=progress)
    within = None if max_drop is None else found.within(max_drop)
    if json:
        terminal.show_json(asdict(found) | ({} if within is None else {"within": within}))
    else:
        _show(found, within)


def _show(found: Any, within: dict[str, float] | None) -> None:
    from lilliput.report.text import digits, metric, percent, shape_text

    text = metric if found.unit == "metric" else digits
    if found.unit == "metric":
        terminal.say(f"dense: {metric(found.dense)}; with one layer pruned to a sparsity of")
    else:
        terminal.say("divergence of the outputs with one layer pruned to a sparsity of")
    last = () if within is None else (">within",)
    table = terminal.new_table("layer", "kind", ">shape", *(f">{percent(s)}" for s in found.sparsities), *last)
    for curve in found.curves:
        cells = [curve.name, curve.kind, shape_text(curve.shape), *(text(value) for value in curve.values)]
        terminal.add_row(table, cells + ([] if within is None else [percent(within[curve.name])]))
    terminal.show_table(table)
