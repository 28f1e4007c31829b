"""`lilliput cut`: a model in, the file of one with fewer channels out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lilliput.cli import parameters, terminal


@dataclass(frozen=True)
class What:
    """What is removed, as in the `[[cut]]` of a recipe."""

    match: Annotated[str, Parameter(help="Shell pattern for the weights whose outputs go.")] = "*"
    pattern: Annotated[
        str, Parameter(help="channel (all), filter, neuron, head, or block (whole residual blocks).")
    ] = "channel"
    criterion: Annotated[
        str | None, Parameter(help="What scores weights, such as prune/taylor; without it their squares.")
    ] = None
    multiple: Annotated[int, Parameter(help="Round the channels that stay up to a multiple.")] = 1
    absorb: Annotated[bool, Parameter(help="Move what removed channels gave into biases, where exact.")] = False


def cut(
    model: parameters.Model,
    *,
    share: Annotated[float, Parameter(help="Part of the channels that goes, 0 to 1; one at least stays.")],
    output: parameters.Output,
    what: Annotated[What, Parameter(name="*")] = What(),
    given: parameters.Along = parameters.NOTHING,
    report: Annotated[Path | None, Parameter(help="Also write a report, .html or .json.")] = None,
    json: parameters.Json = False,
) -> None:
    """Remove channels for good, without training, and write the smaller network.

    Needs --input or --data. To train it before it is written, use lilliput.cut in Python.

      lilliput cut net.py:build --weights net.pth --input 1x3x224x224 --share 0.5 -o net.safetensors
    """
    from dataclasses import asdict

    from lilliput.cli import inputs, sources
    from lilliput.cli.compress import tell, write
    from lilliput.core.recipe import from_data

    if given.data is None and given.input is None:
        raise terminal.UsageError("cut follows channels through the network: give --input or --data")
    terminal.check_outputs(output, report, sources=[given.weights, model.rpartition(":")[0]])
    if report is not None:
        terminal.check_ending(report, ".html", ".json")
    asked = {key: value for key, value in asdict(what).items() if value is not None}
    recipe = from_data({"cut": [{"share": share, **asked}]})
    example = inputs.inputs_of(given.input)
    with terminal.working("loading the model"):
        network, batches, metric = sources.loaded(model, given, example)
    write(network, recipe, output, example=example, batches=batches, metric=metric, fold=True)
    tell(output, network, report, json)
