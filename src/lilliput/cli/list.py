"""`lilliput list`: the methods that can be found, and the recipes that come with Lilliput."""

from __future__ import annotations

import dataclasses
import importlib.resources
import inspect
from typing import Annotated, Any

from cyclopts import Parameter

from lilliput.cli import parameters, terminal


def list(  # the verb's name
    family: Annotated[
        str, Parameter(help="A family (quantize), one method (quantize/uniform), or presets; all if not given.")
    ] = "",
    *,
    json: parameters.Json = False,
) -> None:
    """List methods with their kind and a line each, and preset recipes; or the settings of one method.

    lilliput list quantize
    lilliput list quantize/uniform
    """
    from lilliput.core.method import FAMILIES, find_path, methods

    if family and family not in {*FAMILIES, "presets"} and "/" in family:
        _one(family, find_path(family), json)
        return
    if family and family not in FAMILIES and family != "presets":
        raise terminal.UsageError(f"no family '{family}'; there are {', '.join(FAMILIES)}, and presets")
    found = [] if family == "presets" else [dataclasses.asdict(listing) for listing in methods(family)]
    if family == "nets":
        found = [entry | _counted(find_path(entry["path"])()) for entry in found]
    recipes = _presets() if family in {"", "presets"} else []
    if json:
        terminal.show_json({"methods": found, "presets": recipes})
        return
    if found:
        counted = ["parameters", "MACs"] if family == "nets" else []
        table = terminal.new_table("method", "kind", *counted, "~")
        for entry in found:
            numbers = [f"{entry[name.lower()]:,}" for name in counted]
            terminal.add_row(table, [entry["path"], entry["kind"], *numbers, entry["summary"]])
        terminal.show_table(table)
    if recipes:
        table = terminal.new_table("preset", "~")
        for entry in recipes:
            terminal.add_row(table, [entry["name"], entry["summary"]])
        terminal.show_table(table)
    if not found and not recipes:
        terminal.say(f"{family}: no method yet")


def _counted(net: Any) -> dict[str, int]:
    """Counts of a network at some setting, for one picture."""
    from lilliput.graph.count import counts_of

    return dataclasses.asdict(counts_of(net))


def _variants(method: Any) -> Any:
    """The settings of a network that its paper has, each with what differs from the defaults, and its counts."""
    found = []
    for net in method.choices():
        own = {f.name: getattr(net, f.name) for f in dataclasses.fields(net)}
        other = {name: value for name, value in own.items() if value != getattr(method(), name)}
        found.append({"settings": other} | _counted(net))
    return found


def _presets() -> Any:
    """Name and first comment of each recipe that comes with Lilliput."""
    from lilliput.core.recipe import presets

    entries = []
    for name in presets():
        text = (importlib.resources.files("lilliput") / "presets" / f"{name}.toml").read_text("utf-8")
        lines = []
        for line in text.splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# "))
        entries.append({"name": name, "summary": " ".join(lines)})
    return entries


def _one(path: str, method: Any, json: bool) -> None:
    from lilliput.core.method import kind_of

    about = inspect.getdoc(method) or ""
    settings = []
    for field in dataclasses.fields(method) if dataclasses.is_dataclass(method) else ():
        default = None if field.default is dataclasses.MISSING else field.default
        settings.append({"name": field.name, "type": str(field.type), "default": default})
    variants = _variants(method) if kind_of(method) == "network" else []
    if json:
        told = {"path": path, "kind": kind_of(method), "settings": settings, "about": about}
        terminal.show_json(told | ({"variants": variants} if variants else {}))
        return
    terminal.say(f"{path} ({kind_of(method)})")
    for line in about.splitlines():
        terminal.say(line)
    if variants:
        table = terminal.new_table("~", "parameters", "MACs")
        for entry in variants:
            changed = ", ".join(f"{key} = {_toml(value)}" for key, value in entry["settings"].items()) or "the defaults"
            terminal.add_row(table, [changed, f"{entry['parameters']:,}", f"{entry['macs']:,}"])
        terminal.show_table(table)
    elif settings and "loss" in kind_of(method):
        terminal.say()
        given = ", ".join(f"{s['name']}={s['default']!r}" for s in settings)
        terminal.say(f"In Python, with the defaults: {method.__name__}({given})")
    elif settings:
        terminal.say()
        terminal.say("In a recipe, with the defaults:")
        words = [f'method = "{path}"', *(f"{s['name']} = {_toml(s['default'])}" for s in settings)]
        terminal.say(f"  {{{', '.join(words)}}}")


def _toml(value: Any) -> str:
    import json

    return json.dumps(value) if isinstance(value, str | bool | int) else repr(value)
