"""`lilliput hardware`: what each layer of a model costs on a device: energy by level, cycles, and its bound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lilliput.cli import parameters, terminal


@dataclass(frozen=True)
class Given:
    """What is given along with the model."""

    weights: parameters.Weights = None
    input: parameters.Inputs = None


@dataclass(frozen=True)
class Shown:
    """What is told besides."""

    picture: Annotated[
        Path | None, Parameter(help="Also draw the energy of each layer by level, as .svg; one dataflow.")
    ] = None
    measure: Annotated[bool, Parameter(help="Also time each layer in float32 on this machine; with --device this.")] = (
        False
    )


def hardware(
    model: parameters.Model,
    *,
    given: Annotated[Given, Parameter(name="*")] = Given(),
    device: Annotated[
        str, Parameter(help="eyeriss, eyeriss_256, tpu_v1, phone_cpu, this (measured), or a .toml file of your own.")
    ] = "eyeriss",
    dataflow: Annotated[str, Parameter(help="Another dataflow than the device's own, or all, to compare them.")] = "",
    compressed: Annotated[
        Path | None,
        Parameter(help="A file made of the model: what it costs is told beside it, with its bits and zeros."),
    ] = None,
    shown: Annotated[Shown, Parameter(name="*")] = Shown(),
    json: parameters.Json = False,
) -> None:
    """Estimate for each layer the energy of arithmetic and of every memory, cycles, and what holds it back.

    lilliput hardware net.py:build --input 1x3x224x224 --device eyeriss
    lilliput hardware net.py:build --input 1x3x224x224 --compressed net.safetensors --dataflow all
    """
    from lilliput.cli import inputs, sources
    from lilliput.hardware.dataflow import FLOWS

    example = inputs.inputs_of(given.input)
    if example is None:
        raise terminal.UsageError("give --input: the cost of a layer depends on the size of what goes into it")
    _check(shown, given, device, compressed)
    chosen = _device(device)
    flows = list(FLOWS) if dataflow == "all" else [dataflow or chosen.dataflow]
    with terminal.working("assessing the layers"):
        around = parameters.Around(weights=given.weights, input=given.input)
        network, _, _ = sources.loaded(model, around, example)
        found, notes = _assessed(network, example, chosen, flows, {})
        after = None
        if compressed is not None:
            from lilliput.file.read import read
            from lilliput.run.load import fill

            artifact = read(compressed)
            smaller = fill(sources.model_of(model, given.weights), artifact)
            after, more = _assessed(smaller, example, chosen, flows, artifact.weights)
            notes += [note for note in more if note not in notes]
    if shown.picture is not None:
        _draw(shown.picture, chosen, found[flows[0]], after[flows[0]] if after else None)
    times = _measured(found[flows[0]], chosen) if shown.measure else []
    if json:
        told = _told(chosen, found, after, notes)
        terminal.show_json(told | ({"measured": times} if shown.measure else {}))
        return
    for flow in flows:
        _show(chosen, flow, found[flow], after[flow] if after else None)
    if times:
        _show_times(times)
    for note in notes:
        terminal.say(note)


def _check(shown: Shown, given: Given, device: str, compressed: Path | None) -> None:
    """Finds out before the work what can't be done."""
    if shown.measure and device != "this":
        raise terminal.UsageError("--measure times this machine: give --device this")
    if shown.picture is not None:
        terminal.check_outputs(shown.picture, sources=[given.weights, compressed])
        terminal.check_ending(shown.picture, ".svg")


def _measured(rows: Any, device: Any) -> list[dict[str, Any]]:
    """For each layer the least time by its roofline, and the time that it takes."""
    from dataclasses import replace

    from lilliput.hardware.roofline import bound, measured

    found = []
    with terminal.working("timing the layers"):
        for row in rows:
            layer = replace(row.layer, weight_density=1.0, input_density=1.0, output_density=1.0)
            least, taken = bound(layer, device), measured(layer)
            found.append({"name": row.layer.name, "bound": least.by, "predicted": least.seconds, "measured": taken})
    return found


def _show_times(times: list[dict[str, Any]]) -> None:
    from lilliput.report.text import digits

    table = terminal.new_table("~layer", "bound", ">predicted", ">measured", ">ratio")
    for row in times:
        ratio = digits(row["measured"] / row["predicted"])
        cells = [row["name"], row["bound"], _time(row["predicted"]), _time(row["measured"]), ratio]
        terminal.add_row(table, cells)
    terminal.show_table(table)


def _draw(path: Path, device: Any, before: Any, after: Any) -> None:
    """Writes the picture that the report also has, with colours of its own."""
    from lilliput.file.atomic import write_text
    from lilliput.hardware.energy import LEVELS
    from lilliput.report.energy import Bill, Spent
    from lilliput.report.html import energy_picture, standalone

    def parts(rows: Any) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for row in rows or []:
            held = found.setdefault(row.layer.name, {})
            for part in ("arithmetic", *LEVELS):
                value = getattr(row.energy, part)
                held[part] = held.get(part, 0.0) + (value if part == "arithmetic" else value.total)
        return found

    first, second = parts(before), parts(after)
    names = dict.fromkeys([*first, *second])
    layers = {name: Spent(first.get(name, {}), second.get(name, {})) for name in names}
    write_text(path, standalone(energy_picture(Bill(device.name, device.costs.unit, layers))))


def _device(name: str) -> Any:
    from lilliput.hardware.device import Device
    from lilliput.hardware.roofline import this_machine

    return this_machine() if name == "this" else Device.load(name)


def _assessed(
    network: Any, example: Any, device: Any, flows: list[str], weights: Any
) -> tuple[dict[str, Any], list[str]]:
    """By dataflow, what each layer costs, factorized ones each factor; and notes."""
    from lilliput.core.data import call
    from lilliput.hardware.assess import assess
    from lilliput.search.layers import as_run, code_bits, layers_of

    layers, notes = layers_of(network.eval(), lambda: call(network, example), device.word_bits, code_bits(weights))
    layers = as_run(layers, weights, device.word_bits)
    return {flow: [assess(layer, device, flow) for layer in layers] for flow in flows}, notes


def _told(device: Any, found: dict[str, Any], after: dict[str, Any] | None, notes: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    def side(assessed: dict[str, Any]) -> dict[str, Any]:
        return {flow: {"layers": [each.to_dict() for each in rows], **_total(rows)} for flow, rows in assessed.items()}

    told = {"device": asdict(device), "flows": side(found), "notes": notes}
    return told | ({} if after is None else {"compressed": side(after)})


def _total(rows: Any) -> dict[str, float]:
    return {
        "macs": sum(row.layer.macs for row in rows),
        "energy": sum(row.energy.total for row in rows),
        "cycles": sum(row.analysis.cycles for row in rows),
        "seconds": sum(row.seconds for row in rows),
    }


def _show(device: Any, flow: str, rows: Any, after: Any) -> None:
    from lilliput.hardware.energy import LEVELS
    from lilliput.report.text import BARS, digits, percent

    unit = device.costs.unit
    terminal.say(f"{flow} on {device.name}; energy in millions of {unit}")
    columns = ["~layer", ">MACs", ">weights", ">inputs", *(f">{level}" for level in ("arithmetic", *LEVELS)), ">energy"]
    columns += [">share", "", ">cycles", ">busy", "bound", *([">compressed"] if after else [])]
    table = terminal.new_table(*columns)
    total = sum(row.energy.total for row in rows)
    most = max(row.energy.total for row in rows) or 1.0
    later: dict[str, float] = {}
    for row in after or []:
        later[row.layer.name] = later.get(row.layer.name, 0.0) + row.energy.total
    for row in rows:
        layer, energy = row.layer, row.energy
        cells = [layer.name, f"{layer.macs:,}", percent(layer.weight_density), percent(layer.input_density)]
        cells += [digits(energy.arithmetic / 1e6), *(digits(getattr(energy, level).total / 1e6) for level in LEVELS)]
        cells += [digits(energy.total / 1e6), percent(energy.total / total)]
        cells += [BARS[round(energy.total / most * (len(BARS) - 1))], f"{row.analysis.cycles:,}"]
        cells += [percent(row.analysis.utilisation), row.by]
        if after:
            small = later.get(layer.name)
            cells.append("–" if small is None else digits(small / 1e6))
        terminal.add_row(table, cells)
    terminal.show_table(table)
    sums = _total(rows)
    terminal.say(f"{sums['macs']:,} MACs, {digits(sums['energy'] / 1e6)} million {unit}, {_time(sums['seconds'])}")
    if after:
        less = _total(after)
        ratio = digits(sums["energy"] / less["energy"])
        terminal.say(
            f"compressed: {digits(less['energy'] / 1e6)} million {unit}, {ratio} times less, {_time(less['seconds'])}"
        )


def _time(seconds: float) -> str:
    from lilliput.report.text import digits

    return f"{digits(seconds * 1e3)} ms"
