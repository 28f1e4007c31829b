"""`lilliput report`: writes the report of a file as a page or as JSON."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from lilliput.cli import parameters, terminal


def report(
    file: parameters.File,
    *,
    output: parameters.Output,
    model: Annotated[
        str | None, Parameter(help="The original model, to show its values before and after: file.py:function.")
    ] = None,
    weights: parameters.Weights = None,
    device: Annotated[
        str | None, Parameter(help="Also tell the energy of each layer on it (see lilliput hardware); needs --model.")
    ] = None,
    json: parameters.Json = False,
) -> None:
    """Write a report of a file: a page that opens offline (.html), or the same as .json.

    lilliput report net.safetensors --model net.py:build --weights net.pth -o report.html
    lilliput report net.safetensors --model net.py:build --device eyeriss -o report.html
    """
    from lilliput.cli import sources
    from lilliput.file.read import read
    from lilliput.hardware.device import Device
    from lilliput.report.collect import Report

    if weights is not None and model is None:
        raise terminal.UsageError("--weights belongs to a model: give --model too")
    if device is not None and model is None:
        raise terminal.UsageError("--device tells energy before and after: give --model too")
    terminal.check_outputs(output, sources=[file, weights])
    terminal.check_ending(output, ".html", ".json")
    with terminal.working("writing the report"):
        artifact = read(file)
        original = sources.model_of(model, weights) if model else None
        made = Report(artifact, original, file, Device.load(device) if device else None)
        made.save(output)
    if json:
        terminal.show_json({"output": str(output), **made.to_dict()})
    else:
        terminal.say(f"{output}: report of {file}")
