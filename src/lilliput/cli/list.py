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
    recipes = _presets() if family in {"", "presets"} else []
    if json:
        terminal.show_json({"methods": found, "presets": recipes})
        return
    if found:
        table = terminal.new_table("method", "kind", "~")
        for entry in found:
            terminal.add_row(table, [entry["path"], entry["kind"], entry["summary"]])
        terminal.show_table(table)
    if recipes:
        table = terminal.new_table("preset", "~")
        for entry in recipes:
            terminal.add_row(table, [entry["name"], entry["summary"]])
        terminal.show_table(table)
    if not found and not recipes:
        terminal.say(f"{family}: no method yet")


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
    if json:
        terminal.show_json({"path": path, "kind": kind_of(method), "settings": settings, "about": about})
        return
    terminal.say(f"{path} ({kind_of(method)})")
    for line in about.splitlines():
        terminal.say(line)
    if settings:
        terminal.say()
        terminal.say("In a recipe, with the defaults:")
        words = [f'method = "{path}"', *(f"{s['name']} = {_toml(s['default'])}" for s in settings)]
        terminal.say(f"  {{{', '.join(words)}}}")


def _toml(value: Any) -> str:
    import json

    return json.dumps(value) if isinstance(value, str | bool | int) else repr(value)
