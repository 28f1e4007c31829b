"""`lilliput inspect`: what a file or a model holds, layer by layer, and where the bytes are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lilliput.cli import parameters, terminal


def inspect(
    target: Annotated[str, Parameter(help="A file written by Lilliput, or a model (file.py:function).")],
    model: Annotated[str, Parameter(help="The original model, to show its values before and after.")] = "",
    *,
    weights: parameters.Weights = None,
    all: Annotated[bool, Parameter(help="List biases, norms and buffers too.")] = False,
    json: parameters.Json = False,
) -> None:
    """Show each layer's shape, method, bits, share, values and kurtosis, and where the bytes of a file are.

    lilliput inspect net.safetensors
    lilliput inspect net.py:build --weights net.pth
    lilliput inspect net.safetensors net.py:build --weights net.pth
    """
    from lilliput.cli import sources

    if not Path(target).exists() and ":" in target:
        if model:
            raise terminal.UsageError("give the file first, then the model that it was made of")
        with terminal.working("loading the model"):
            network = sources.model_of(target, weights)
        _model(target, network, all, json)
        return
    if weights is not None and not model:
        raise terminal.UsageError("--weights belongs to a model: lilliput inspect FILE MODEL --weights WEIGHTS")
    from lilliput.file.read import read
    from lilliput.report.collect import Report

    with terminal.working("reading"):
        artifact = read(target)
        original = sources.model_of(model, weights) if model else None
        report = Report(artifact, original, target)
        told = report.to_dict()
    if json:
        terminal.show_json(told)
    else:
        _file(report, all)


def _file(report: Any, everything: bool) -> None:
    from lilliput.report.text import digits, metric, percent, shape_text, size_text

    summary, has_before = report.summary, report.original is not None
    values = ["before", "after"] if has_before else ["values"]
    columns = ["~layer", "~shape", "~method", ">numbers", ">bytes", ">bits", ">error", ">zeros", *values, ">kurtosis"]
    table = terminal.new_table(*columns)
    shown = [layer for layer in report.layers if everything or layer.method != "kept" or len(layer.shape) >= 2]
    for layer in shown:
        cells = [layer.name, f"{layer.kind} {shape_text(layer.shape)}", layer.method]
        cells += [f"{layer.parameters:,} {percent(layer.parameter_share):>6}"]
        cells += [f"{size_text(layer.bytes)} {percent(layer.byte_share):>6}", digits(layer.bits)]
        cells += ["trained" if layer.trained and layer.error is None else percent(layer.error)]
        terminal.add_row(table, [*cells, *_spread(*([layer.before] if has_before else []), layer.after)])
    terminal.show_table(table)
    for layer in shown:
        if layer.activations:
            terminal.say(f"what goes into {layer.name}: {layer.activations}")
    rest = [layer for layer in report.layers if layer not in shown]
    if rest:
        size = size_text(sum(layer.bytes for layer in rest))
        terminal.say(f"{len(rest)} biases, norms and buffers, kept as they were: {size}; --all lists them")
    parts = ", ".join(f"{name} {size_text(size)}" for name, size in summary.parts.items())
    graph = f"graph of {summary.nodes} operators" if summary.nodes is not None else "no graph"
    terminal.say(f"{summary.file}: {size_text(summary.bytes)} ({parts})")
    terminal.say(f"{digits(summary.ratio)} times smaller than {size_text(summary.original)} of tensors; {graph}")
    if summary.macs is not None:
        terminal.say("MACs for one input: {:,} before, {:,} after".format(*summary.macs))
    if summary.after is not None:
        terminal.say(f"metric: {metric(summary.before)} before, {metric(summary.after)} after")
    if not has_before:
        terminal.say("the values before aren't in the file: give the original model too to see them")
    for note in report.notes:
        terminal.say(note)


def _spread(*values: Any) -> list[str]:
    """Zeros, a small histogram for each distribution, and kurtosis, from before to after."""
    from lilliput.report.text import digits, percent, sparkline

    zeros = [percent(value.zeros) if value else "–" for value in values]
    kurtosis = [digits(value.kurtosis) if value else "–" for value in values]
    lines = [sparkline(value.counts) if value else "" for value in values]
    return [" → ".join(zeros), *lines, " → ".join(kurtosis)]


def _model(spec: str, network: Any, everything: bool, json: bool) -> None:
    from dataclasses import asdict

    from lilliput.report.original import survey
    from lilliput.report.text import percent, shape_text, size_text

    layers = survey(network)
    if json:
        terminal.show_json({"model": spec, "layers": [asdict(layer) for layer in layers]})
        return
    table = terminal.new_table("~layer", "~shape", "dtype", ">numbers", ">bytes", ">zeros", "values", ">kurtosis")
    shown = [layer for layer in layers if everything or len(layer.shape) >= 2]
    for layer in shown:
        cells = [layer.name, f"{layer.kind} {shape_text(layer.shape)}", layer.dtype]
        cells += [f"{layer.parameters:,} {percent(layer.parameter_share):>6}", size_text(layer.bytes)]
        terminal.add_row(table, [*cells, *_spread(layer.values)])
    terminal.show_table(table)
    if len(shown) < len(layers):
        terminal.say(f"{len(layers) - len(shown)} biases, norms and buffers; --all lists them")
    total = sum(layer.parameters for layer in layers)
    terminal.say(f"{spec}: {total:,} numbers, {size_text(sum(layer.bytes for layer in layers))}")
