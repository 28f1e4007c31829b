"""`lilliput compress`: a model and a recipe in, one file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lilliput.cli import parameters, terminal


def compress(
    model: parameters.Model,
    *,
    recipe: Annotated[str, Parameter(name=["--recipe", "-r"], help="A preset (see lilliput list), or a TOML file.")],
    output: parameters.Output,
    given: parameters.Along = parameters.NOTHING,
    report: Annotated[Path | None, Parameter(help="Also write a report, .html or .json.")] = None,
    no_fold: Annotated[bool, Parameter(help="Keep BatchNorm as it is instead of folding it away.")] = False,
    json: parameters.Json = False,
) -> None:
    """Compress a trained model into one file, without training.

    With --input or --data the file also holds the network's graph, and runs without the model's class.

      lilliput compress net.py:build --weights net.pth --input 1x3x224x224 --recipe int8 -o net.safetensors
    """
    from lilliput.cli import inputs, sources

    terminal.check_outputs(output, report, sources=[given.weights, model.rpartition(":")[0], recipe])
    if report is not None:
        terminal.check_ending(report, ".html", ".json")
    wanted = sources.recipe_of(recipe)
    example = inputs.inputs_of(given.input)
    with terminal.working("loading the model"):
        network, batches, metric = sources.loaded(model, given, example)
    write(network, wanted, output, example=example, batches=batches, metric=metric, fold=not no_fold)
    tell(output, network, report, json)


def write(network: Any, recipe: Any, output: Path, *, example: Any, batches: Any, metric: Any, fold: bool) -> None:
    """Compresses, measures if there is a metric, and writes the file."""
    import copy

    from lilliput.report.facts import record
    from lilliput.run.load import fill, load
    from lilliput.train.compress import compress as compressed

    with terminal.working("compressing"):
        artifact = compressed(network, recipe, batches, example=example, fold=fold)
    if metric is not None:
        with terminal.working("evaluating"):
            before = metric(network)
            net = (
                load(artifact, engine="dense") if artifact.graph is not None else fill(copy.deepcopy(network), artifact)
            )
            artifact = record(artifact, before=before, after=metric(net))
    with terminal.working("writing"):
        artifact.save(output)


def tell(output: Path, network: Any, report: Path | None, json: bool) -> None:
    """Tells of the written file, and writes a report if one is wanted."""
    with terminal.working("writing the report"):
        told = _told(output, network, report)
    if json:
        terminal.show_json({"output": str(output), **told.to_dict()})
    else:
        _show(told, report)


def _told(output: Path, network: Any, path: Path | None) -> Any:
    """Reads the written file again: what is told of it is what is there."""
    from lilliput.file.read import read
    from lilliput.report.collect import Report

    report = Report(read(output), network, output)
    if path is not None:
        report.save(path)
    return report


def _show(told: Any, path: Path | None) -> None:
    from lilliput.report.facts import notes
    from lilliput.report.text import digits, metric, size_text

    summary = told.summary
    terminal.say(
        f"{summary.file}: {size_text(summary.bytes)}, {digits(summary.ratio)} times smaller than "
        f"{size_text(summary.original)} of tensors; "
        f"{digits(summary.bits)} bits for each of {summary.parameters:,} numbers"
    )
    if summary.macs is not None:
        terminal.say("MACs for one input: {:,} before, {:,} after".format(*summary.macs))
    if summary.after is not None:
        terminal.say(f"metric: {metric(summary.before)} before, {metric(summary.after)} after")
    for name, note in notes(told.artifact.facts).items():
        terminal.say(f"{name}: {note}")
    if path is not None:
        terminal.say(f"report: {path}")
