"""`lilliput plan`: a model and a budget in, a recipe out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lilliput.cli import parameters, terminal
from lilliput.core.errors import BudgetError


@dataclass(frozen=True)
class Asked:
    """What must hold."""

    size: Annotated[
        str | None, Parameter(help="Largest file: '1 MB', '300 kB', or a part of the original, '0.1x'.")
    ] = None
    max_drop: Annotated[
        float | None, Parameter(help="Largest drop of your metric, in its units; needs --evaluate.")
    ] = None
    macs: Annotated[
        str | None, Parameter(help="Most multiplications for one input: '300M', '50%', '2x fewer'; channels are cut.")
    ] = None
    parameters: Annotated[str | None, Parameter(help="Most parameters, likewise.")] = None
    energy: Annotated[str | None, Parameter(help="Most energy for one input on --device: '40%', '3x less'.")] = None
    device: Annotated[str, Parameter(help="Of --energy: see lilliput hardware.")] = "eyeriss"
    activations: Annotated[
        float | None, Parameter(help="Most bits of a number that goes into a layer, in the mean, 2 to 8; needs --data.")
    ] = None
    latency: Annotated[
        str | None, Parameter(help="Longest time for one input: '5 ms', '0.5x', '2x faster'; needs --data.")
    ] = None


def plan(
    model: parameters.Model,
    *,
    asked: Annotated[Asked, Parameter(name="*")] = Asked(),
    given: parameters.Along = parameters.NOTHING,
    output: Annotated[
        Path | None, Parameter(name=["--output", "-o"], help="Where the recipe goes; stdout if not given.")
    ] = None,
    json: parameters.Json = False,
) -> None:
    """Find the recipe that meets a budget at the least cost.

    Exit code 3 means that the budget can't be met; the message names the nearest one that can.

      lilliput plan net.py:build --weights net.pth --data net.py:batches --size '1 MB' -o recipe.toml
      lilliput plan net.py:build --weights net.pth --data net.py:batches --macs 50% -o recipe.toml
      lilliput plan net.py:build --weights net.pth --data net.py:batches --latency 0.5x -o recipe.toml
    """
    import lilliput
    from lilliput.cli import inputs, sources
    from lilliput.core.recipe import to_data

    if asked == Asked(device=asked.device):
        raise terminal.UsageError(
            "give a budget: --size '1 MB', --max-drop 0.005, --energy 40%, --macs 50%, --parameters 1M, "
            "--activations 6, --latency 0.5x"
        )
    if asked.activations is not None and given.data is None:
        raise terminal.UsageError("--activations needs --data: bits go by what they do to the outputs")
    if asked.max_drop is not None and given.evaluate is None:
        raise terminal.UsageError("--max-drop needs --evaluate, which measures the drop")
    if (asked.macs or asked.parameters) and given.data is None and given.input is None:
        raise terminal.UsageError("--macs and --parameters cut channels: give --data or --input")
    if asked.energy and given.data is None and given.input is None:
        raise terminal.UsageError("--energy depends on the sizes of what goes into layers: give --data or --input")
    if asked.latency and given.data is None:
        raise terminal.UsageError("--latency puts activations in 8 bits: give --data to calibrate them on")
    budget = _budget(asked)
    terminal.check_outputs(output, sources=[given.weights, model.rpartition(":")[0]])
    example = inputs.inputs_of(given.input)
    with terminal.working("loading the model"):
        network, batches, metric = sources.loaded(model, given, example)
    with terminal.working("planning") as progress:
        recipe = lilliput.plan(network, budget, batches, metric, example=example, progress=progress)
    text = recipe.dumps()
    if output is not None:
        from lilliput.file.atomic import write_text

        write_text(output, text)
    if json:
        terminal.show_json({"output": str(output) if output else None, "recipe": to_data(recipe), "toml": text})
    elif output is None:
        print(text, end="")
    else:
        count = len(recipe.rules) + len(recipe.cuts)
        terminal.say(f"{output}: {count} rules; use it with lilliput compress --recipe {output}")


def _budget(asked: Asked) -> Any:
    from lilliput.core.budget import Budget

    try:
        return Budget(**asdict(asked))
    except BudgetError as error:
        # What can't be read is no budget that can't be met.
        raise terminal.UsageError(str(error)) from None
