"""`lilliput compare`: how far a file is from the model that it was made of."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from lilliput.cli import parameters, terminal


def compare(
    file: parameters.File,
    model: parameters.Model,
    *,
    weights: parameters.Weights = None,
    data: parameters.Data = None,
    input: parameters.Inputs = None,
    limit: Annotated[int, Parameter(help="How many layers to show, worst first; 0 for all.")] = 25,
    json: parameters.Json = False,
) -> None:
    """Compare a file with the original model: outputs on data, and each layer, worst first.

    Without --data or --input only the weights are compared.

      lilliput compare net.safetensors net.py:build --weights net.pth --data net.py:batches
    """
    from dataclasses import asdict

    from lilliput.cli import inputs, sources
    from lilliput.file.read import read
    from lilliput.run.compare import compare as compared

    if data is not None and input:
        raise terminal.UsageError("give --data or --input, not both")
    example = inputs.inputs_of(input)
    with terminal.working("loading"):
        artifact = read(file)
        network = sources.model_of(model, weights)
        batches = sources.data_of(data) if example is None else [example]
    with terminal.working("comparing"):
        found = compared(artifact, network, batches)
    if json:
        terminal.show_json(asdict(found))
    else:
        _show(found, limit)


def _show(found: Any, limit: int) -> None:
    from lilliput.report.text import digits, percent

    if found.outputs is not None:
        table = terminal.new_table("outputs", ">")
        lines = {
            "samples": f"{found.outputs.samples:,}",
            "same class first": percent(found.outputs.agreement),
            "cosine": "–" if found.outputs.cosine is None else f"{found.outputs.cosine:.6f}",
            "relative error": percent(found.outputs.relative),
            "largest difference": digits(found.outputs.largest),
        }
        for name, value in lines.items():
            terminal.add_row(table, [name, value])
        terminal.show_table(table)
    table = terminal.new_table("layer", "kind", ">weight error", ">output error, alone", ">output error, piled up")
    shown = found.layers[:limit] if limit > 0 else found.layers
    for layer in shown:
        terminal.add_row(
            table, [layer.name, layer.kind, percent(layer.weight), percent(layer.output), percent(layer.reached)]
        )
    terminal.show_table(table)
    if len(shown) < len(found.layers):
        terminal.say(f"and {len(found.layers) - len(shown)} more; --limit 0 shows all")
    for note in found.notes:
        terminal.say(note)
