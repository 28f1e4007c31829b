"""`Recipe`: ordered rules `layer pattern -> steps`, in Python or TOML; the only description of what to do."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib.resources
import json
import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec

from lilliput.core.cut import CutRule
from lilliput.core.errors import LilliputError, NotInstalled, RecipeError
from lilliput.core.method import find_path, kind_of, path_of

if TYPE_CHECKING:
    from lilliput.core.contracts import GraphPass
    from lilliput.core.layers import Weight
    from lilliput.core.method import ActivationQuantizer, Penalty, Schedule, WeightMethod

VERSION = 1
ACTIVATIONS = "quantize/activations"
PASSES = "quantize/passes"
SKIPS = {"none": frozenset(), "first": {"first"}, "last": {"last"}, "first and last": {"first", "last"}}
"""Which of the model's weights a rule passes over."""


@dataclass(frozen=True)
class Absent:
    """A step of a recipe in a file whose method isn't installed here: its text is kept, it can't be carried out.

    Attributes:
        method: its path, such as `"quantize/somebodys"`.
        settings: as the recipe has them.
        missing: which method isn't installed: the step's own, or one that its settings name.
    """

    method: str
    settings: dict[str, Any]
    missing: str = ""

    def _refuse(self, *args: Any, **named: Any) -> NoReturn:
        raise NotInstalled(f"{self.method} can't be carried out: {self.missing or 'it is not installed'}")

    pack = unpack = advance = observe = forward = score = _refuse


@dataclass(frozen=True)
class Rule:
    """What is done to the weights that fit a pattern.

    Attributes:
        match: shell pattern for the parameter's name, such as `"features.*.weight"`.
        steps: weight methods, applied in order; none leaves the weight as it is.
        layers: shell pattern for the layer kind (`linear`, `conv2d`, `embedding`, `attention`, `recurrent`, ...).
            `"*"` stands for every kind but `vector`: biases and norms are only touched when asked for.
        schedule: how the steps grow during training, or None: all at once.
        penalty: what pulls the weights to zero while they are trained, or None.
        activations: what goes into the layers of these weights is quantized by it, or None: stays as it is. In TOML
            a table as for a step, or its name and settings in their order, as in `"uniform:8"`.
        outputs: what comes out of these layers is quantized by it where no quantizer of another layer's input does that
            anyway: what goes into sums, concatenations and pools. None: stays as it is.
        skip: weights that the rule passes over, as papers leave them in full precision: `"first"`, `"last"` or
            `"first and last"` of the model, in the order of its parameters, vectors not counted; or `"none"`.
        why: a word on why, kept and shown in reports.
    """

    match: str = "*"
    steps: tuple[WeightMethod, ...] = ()
    layers: str = "*"
    schedule: Schedule | None = None
    penalty: Penalty | None = None
    activations: ActivationQuantizer | None = None
    outputs: ActivationQuantizer | None = None
    skip: str = "none"
    why: str = ""

    def __post_init__(self) -> None:
        if self.skip not in SKIPS:
            raise RecipeError(f"no skip = {self.skip!r}; there is {', '.join(SKIPS)}")

    @property
    def every(self) -> tuple[Any, ...]:
        """All methods that the rule names."""
        others = (self.schedule, self.penalty, self.activations, self.outputs)
        return (*self.steps, *(other for other in others if other is not None))

    def fits(self, weight: Weight) -> bool:
        """Whether the rule speaks of this weight, by any of its names."""
        if (weight.kind == "vector" and self.layers == "*") or not SKIPS[self.skip].isdisjoint(weight.ends):
            return False
        names = (weight.name, *weight.aliases)
        return fnmatch.fnmatchcase(weight.kind, self.layers) and any(fnmatch.fnmatchcase(n, self.match) for n in names)


@dataclass(frozen=True)
class Recipe:
    """Ordered rules; for each weight the first that fits counts.

    Attributes:
        rules: the rules.
        name: a name for reports.
        cuts: what is removed for good before the rules see the model; for each group of channels the first that
            fits counts.
        passes: what is done to the whole network, in this order: equalization before its weights are packed, the
            correction of biases afterwards. In TOML `passes = ["equalize", "smooth:0.5"]`, or tables as for steps.

    >>> recipe = Recipe.loads('''
    ... [[rule]]
    ... match = "*.weight"
    ... steps = [{method = "prune/magnitude", sparsity = 0.9}, {method = "share/kmeans", bits = 5}]
    ... ''')
    >>> [step.bits for step in recipe.rules[0].steps[1:]]
    [5]
    """

    rules: tuple[Rule, ...] = field(default=())
    name: str = ""
    cuts: tuple[CutRule, ...] = ()
    passes: tuple[GraphPass, ...] = ()

    @classmethod
    def loads(cls, text: str) -> Recipe:
        """Reads a recipe from TOML.

        Raises:
            RecipeError: what is wrong and where, such as ``rule[1].steps[0].bits``.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"the recipe is not valid TOML: {error}") from None
        return from_data(data)

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """Returns a recipe that comes with Lilliput, such as `"deep-compression"`; see `presets()`."""
        known = presets()
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.3) or list(known)
            raise RecipeError(f"no preset recipe '{name}'; there is {', '.join(near)}")
        text = (importlib.resources.files("lilliput") / "presets" / f"{name}.toml").read_text("utf-8")
        return cls.loads(text)

    def dumps(self) -> str:
        """Writes the recipe as TOML, so that `loads` gives an equal one."""
        lines = [f"version = {VERSION}"]
        if self.name:
            lines.append(f"name = {_toml(self.name)}")
        data = to_data(self)
        if self.passes:
            lines.append(f"passes = {_toml(data['passes'])}")
        for kind in ("cut", "rule"):
            for rule in data.get(kind, ()):
                lines += ["", f"[[{kind}]]"]
                lines += [f"{key} = {_toml(value)}" for key, value in rule.items()]
        return "\n".join(lines) + "\n"

    def rule_for(self, weight: Weight) -> Rule | None:
        """Returns the first rule that fits a weight by any of its names, or None."""
        return next((rule for rule in self.rules if rule.fits(weight)), None)

    @property
    def rereads(self) -> bool:
        """Whether data is gone through more than once."""
        return bool(self.cuts or self.passes) or any(rule.outputs is not None for rule in self.rules)

    @property
    def absent(self) -> tuple[str, ...]:
        """Paths of the steps whose methods aren't installed, as a recipe read from a file may have them."""
        steps = [step for rule in self.rules for step in rule.every] + [cut.criterion for cut in self.cuts]
        steps += self.passes
        return tuple(dict.fromkeys(step.method for step in steps if isinstance(step, Absent)))

    def check(self, weights: list[Weight]) -> None:
        """Raises RecipeError if a rule fits none of these weights, or has a step that can't be carried out.

        A rule that fits a weight is fine even if an earlier one has taken it.
        """
        for number, cut in enumerate(self.cuts):
            if isinstance(cut.criterion, Absent):
                missing = cut.criterion
                raise RecipeError(f"cut[{number}]: {missing.method} can't be carried out: {missing.missing}")
        for number, one in enumerate(self.passes):
            if isinstance(one, Absent):
                raise RecipeError(f"passes[{number}]: {one.method} can't be carried out: {one.missing}")
        for number, rule in enumerate(self.rules):
            for step in rule.every:
                if isinstance(step, Absent):
                    raise RecipeError(f"rule[{number}]: {step.method} can't be carried out: {step.missing}")
            if any(rule.fits(weight) for weight in weights):
                continue
            kinds = sorted({w.kind for w in weights})
            names = [w.name for w in weights]
            near = difflib.get_close_matches(rule.match, names, 3, 0.4) or names[:3]
            raise RecipeError(
                f"rule[{number}] (match = {rule.match!r}, layers = {rule.layers!r}) fits no weight; "
                f"there is {', '.join(near) or 'none at all'}, layers {', '.join(kinds)}"
                + ("; write layers = 'vector' for biases and norms" if "vector" in kinds else "")
            )


def presets() -> tuple[str, ...]:
    """Names of the recipes that come with Lilliput."""
    folder = importlib.resources.files("lilliput") / "presets"
    return tuple(sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")))


def to_data(recipe: Recipe) -> dict[str, Any]:
    """Returns a recipe as plain data: what TOML and JSON hold."""
    rules = []
    for rule in recipe.rules:
        entry: dict[str, Any] = {"match": rule.match}
        if rule.layers != "*":
            entry["layers"] = rule.layers
        if rule.why:
            entry["why"] = rule.why
        entry["steps"] = [step_data(step) for step in rule.steps]
        if rule.schedule is not None:
            entry["schedule"] = step_data(rule.schedule)
        if rule.penalty is not None:
            entry["penalty"] = step_data(rule.penalty)
        if rule.activations is not None:
            entry["activations"] = step_data(rule.activations)
        if rule.outputs is not None:
            entry["outputs"] = step_data(rule.outputs)
        if rule.skip != "none":
            entry["skip"] = rule.skip
        rules.append(entry)
    data: dict[str, Any] = {"version": VERSION, "rule": rules}
    if recipe.cuts:
        data["cut"] = [_cut_data(cut) for cut in recipe.cuts]
    if recipe.passes:
        data["passes"] = [step_data(one) for one in recipe.passes]
    if recipe.name:
        data["name"] = recipe.name
    return data


def from_data(data: Any, absent: bool = False) -> Recipe:
    """Makes a recipe from plain data.

    Args:
        data: from TOML or JSON.
        absent: keep steps whose methods aren't installed as `Absent`.

    Raises:
        RecipeError: says what is wrong and where.
    """
    _known(data, {"version", "name", "rule", "cut", "passes"}, "")
    if data.get("version", VERSION) != VERSION:
        raise RecipeError(f"version {data['version']!r}: this Lilliput reads recipes of version {VERSION}")
    rules, cuts = data.get("rule", []), data.get("cut", [])
    for key, entries in (("rule", rules), ("cut", cuts)):
        if not isinstance(entries, list):
            raise RecipeError(f"{key}: write each {key} under its own [[{key}]]")
    passes = data.get("passes", [])
    if not isinstance(passes, list):
        raise RecipeError("passes: must be a list, such as ['equalize', 'smooth:0.5']")
    name = data.get("name", "")
    if not isinstance(name, str):
        raise RecipeError("name: must be a string")
    return Recipe(
        tuple(_rule(entry, f"rule[{i}]", absent) for i, entry in enumerate(rules)),
        name,
        tuple(_cut(entry, f"cut[{i}]", absent) for i, entry in enumerate(cuts)),
        tuple(short(one, f"passes[{i}]", (PASSES, "rewrite"), absent) for i, one in enumerate(passes)),
    )


def _cut(entry: Any, where: str, absent: bool) -> CutRule:
    _known(entry, {f.name for f in dataclasses.fields(CutRule)}, where)
    criterion = entry.get("criterion")
    made = None if criterion is None else step_of(criterion, f"{where}.criterion", "score", absent)
    try:
        rule = msgspec.convert({key: value for key, value in entry.items() if key != "criterion"}, CutRule)
        return dataclasses.replace(rule, criterion=made)
    except (msgspec.ValidationError, LilliputError) as error:
        raise RecipeError(f"{where}: {error}") from None


def _cut_data(cut: CutRule) -> dict[str, Any]:
    """Returns what of a cut isn't the default, the share always."""
    fields = [(f.name, getattr(cut, f.name), f.default) for f in dataclasses.fields(cut)]
    data = {name: value for name, value, default in fields if name == "share" or value != default}
    return {name: step_data(value) if name == "criterion" else value for name, value in data.items()}


def _rule(entry: Any, where: str, absent: bool) -> Rule:
    _known(entry, {f.name for f in dataclasses.fields(Rule)}, where)
    for key in ("match", "layers", "why", "skip"):
        if not isinstance(entry.get(key, ""), str):
            raise RecipeError(f"{where}.{key}: must be a string")
    steps = entry.get("steps", [])
    if not isinstance(steps, list):
        raise RecipeError(f"{where}.steps: must be a list of tables, such as [{{method = 'quantize/uniform'}}]")
    schedule, penalty = entry.get("schedule"), entry.get("penalty")
    if entry.get("skip", "none") not in SKIPS:
        raise RecipeError(f"{where}.skip: {entry['skip']!r} is none of {', '.join(SKIPS)}")
    return Rule(
        match=entry.get("match", "*"),
        steps=tuple(step_of(step, f"{where}.steps[{i}]", "pack", absent) for i, step in enumerate(steps)),
        layers=entry.get("layers", "*"),
        schedule=None if schedule is None else step_of(schedule, f"{where}.schedule", "advance", absent),
        penalty=None if penalty is None else step_of(penalty, f"{where}.penalty", "penalty", absent),
        activations=_quantizer(entry, "activations", where, absent),
        outputs=_quantizer(entry, "outputs", where, absent),
        skip=entry.get("skip", "none"),
        why=entry.get("why", ""),
    )


def _quantizer(entry: dict[str, Any], key: str, where: str, absent: bool) -> Any:
    return None if entry.get(key) is None else activations_of(entry[key], f"{where}.{key}", absent)


def step_data(step: Any) -> dict[str, Any]:
    """Returns a method and its settings (those other than the defaults) as plain data."""
    if isinstance(step, Absent):
        return {"method": step.method, **step.settings}
    data: dict[str, Any] = {"method": path_of(step)}
    for item in dataclasses.fields(step):
        value = getattr(step, item.name)
        if value != item.default:
            data[item.name] = value
    return data


def step_of(data: Any, where: str, ability: str = "pack", absent: bool = False) -> Any:
    """Makes a method from plain data: `{"method": "share/kmeans", "bits": 5}`.

    Args:
        data: from TOML or JSON.
        where: for the error message.
        ability: a function that the method must have: `pack` for a step, `advance` for a schedule, or `penalty`.
        absent: give an `Absent` for a method that isn't installed.

    Raises:
        RecipeError: an unknown method, an unknown setting, or one of the wrong type or out of range.
    """
    if isinstance(data, str):
        data = {"method": data}
    if not isinstance(data, dict) or not isinstance(data.get("method"), str):
        raise RecipeError(f"{where}: must be a table with a method, such as {{method = 'quantize/uniform', bits = 4}}")
    try:
        cls = find_path(data["method"])
        if not callable(getattr(cls, ability, None)):
            raise RecipeError(f"{data['method']} is a {kind_of(cls)}, which can't stand here")
        names = {f.name for f in dataclasses.fields(cls)}
    except LilliputError as error:
        if absent and isinstance(error, NotInstalled):
            return _absent(data, where, error)
        raise RecipeError(f"{where}: {error}") from None
    settings = {key: value for key, value in data.items() if key != "method"}
    _known(settings, names, where)
    try:
        return msgspec.convert(settings, cls)
    except msgspec.ValidationError as error:
        if absent and isinstance(error.__cause__, NotInstalled):
            return _absent(data, where, error.__cause__)
        raise RecipeError(f"{where}: {data['method']}: {error}") from None
    except LilliputError as error:
        raise RecipeError(f"{where}: {error}") from None


def activations_of(data: Any, where: str = "activations", absent: bool = False) -> Any:
    """Makes an activation quantizer from plain data: a table, or its name and settings in their order.

    Raises:
        RecipeError: as `step_of`.

    >>> activations_of("uniform:4").bits
    4
    """
    return short(data, where, (ACTIVATIONS, "observe"), absent)


def short(data: Any, where: str, kind: tuple[str, str], absent: bool = False) -> Any:
    """Makes a method from plain data: a table, or its name and settings in their order.

    Args:
        data: from TOML or JSON.
        where: for the error message.
        kind: the family that a bare name is of, and a function that the method must have.
        absent: as `step_of`.

    Raises:
        RecipeError: as `step_of`.
    """
    if isinstance(data, str) and "/" not in data:
        name, *values = data.split(":")
        data = {"method": f"{kind[0]}/{name}"}
        try:
            fields = dataclasses.fields(find_path(data["method"]))
        except LilliputError as error:
            raise RecipeError(f"{where}: {error}") from None
        if len(values) > len(fields):
            raise RecipeError(f"{where}: {name} has {len(fields)} settings, not {len(values)}")
        data |= {item.name: _setting(value) for item, value in zip(fields, values)}
    return step_of(data, where, kind[1], absent)


def _setting(text: str) -> Any:
    """A setting in a short form: a number or truth value as TOML writes it, or a word."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _absent(data: dict[str, Any], where: str, reason: NotInstalled) -> Absent:
    """The step as it stands, if it is one that a recipe could have."""
    settings = {key: value for key, value in data.items() if key != "method"}
    for key, value in settings.items():
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,63}", key) or not isinstance(value, bool | int | float | str):
            raise RecipeError(f"{where}.{key}: no setting of a method")
    return Absent(data["method"], settings, str(reason))


def _known(data: Any, names: set[str], where: str) -> None:
    if not isinstance(data, dict):
        raise RecipeError(f"{where or 'the recipe'}: must be a table")
    for key in data:
        if key not in names:
            near = difflib.get_close_matches(key, names, 2, 0.4) or sorted(names)
            raise RecipeError(f"{where + '.' if where else ''}{key}: unknown; there is {', '.join(near) or 'none'}")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
