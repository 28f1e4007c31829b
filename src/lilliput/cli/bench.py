"""`lilliput bench`: how fast a file runs in every installed engine, beside the network uncompressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from lilliput.cli import parameters, terminal


@dataclass(frozen=True)
class How:
    """How to measure."""

    engine: Annotated[list[str] | None, Parameter(help="Only these engines; by default all that are installed.")] = None
    threads: Annotated[int | None, Parameter(help="How many threads; by default as many as torch takes.")] = None
    rounds: Annotated[int | None, Parameter(help="Rounds; by default some seconds' worth.")] = None
    no_memory: Annotated[bool, Parameter(help="Leave memory out, which takes a process for each row.")] = False


AS_USUAL = How()


def bench(
    file: parameters.File,
    model: Annotated[str | None, Parameter(help="The original; without it the file's network with floats.")] = None,
    *,
    weights: parameters.Weights = None,
    input: parameters.Inputs = None,
    how: Annotated[How, Parameter(name="*")] = AS_USUAL,
    json: parameters.Json = False,
) -> None:
    """Measure latency, memory and size of a file in every installed engine, beside the uncompressed network.

    lilliput bench net.safetensors
    lilliput bench net.safetensors net.py:build --weights net.pth --input 1x3x224x224 --threads 1
    """
    from dataclasses import asdict

    from lilliput.cli import inputs, sources
    from lilliput.run.measure import bench as measured

    if (how.threads is not None and how.threads < 1) or (how.rounds is not None and how.rounds < 1):
        raise terminal.UsageError("--threads and --rounds are whole numbers from 1 on")
    example = inputs.inputs_of(input)
    with terminal.working("measuring"):
        network = sources.model_of(model, weights) if model is not None else None
        found = measured(
            file,
            network,
            example,
            engines=how.engine or (),
            threads=how.threads,
            rounds=how.rounds,
            memory=not how.no_memory,
        )
    if json:
        terminal.show_json(asdict(found))
    else:
        _show(found)


def _show(found: Any) -> None:
    table = terminal.new_table("network", "engine", ">latency", ">speed", ">memory", ">size")
    for row in found.rows:
        cells = [row.network, row.engine, f"{row.seconds * 1e3:.3f} ms", f"{row.speed:.2f}"]
        terminal.add_row(table, [*cells, _megabytes(row.memory), _megabytes(row.size)])
    terminal.show_table(table)
    shapes = ", ".join("×".join(map(str, shape)) for shape in found.inputs)
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    terminal.say(f"input {shapes}, {threads}; speed 1 is the uncompressed network in {found.yardstick}")
    for line in (*found.layers, *found.notes):
        terminal.say(line)


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.2f} MB"
