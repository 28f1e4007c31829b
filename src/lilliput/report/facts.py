"""The facts of an artifact, read with care: a file may come from a stranger, who may write anything there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lilliput.file.artifact import Artifact


@dataclass(frozen=True)
class Stage:
    """One stage on the way to the file, such as dense, pruned, shared, coded.

    Attributes:
        name: a word or two.
        bytes: size of a file of the network as it was then.
        accuracy: the user's metric then, or None.
    """

    name: str
    bytes: int
    accuracy: float | None = None


def record(
    artifact: Artifact,
    *,
    before: float | None = None,
    after: float | None = None,
    stages: Sequence[Stage] = (),
) -> Artifact:
    """Returns the artifact with measurements in its facts, so that the file and each report of it hold them.

    Args:
        artifact: isn't changed.
        before: the user's metric of the uncompressed network.
        after: the same of the compressed one.
        stages: what it was on the way, in order.

    >>> artifact = record(Artifact({}), before=0.92, after=0.91, stages=[Stage("dense", 1000, 0.92)])
    >>> accuracy(artifact.facts), stages_of(artifact.facts)[0].bytes
    ((0.92, 0.91), 1000)
    """
    facts = dict(artifact.facts)
    if before is not None or after is not None:
        facts["accuracy"] = {key: v for key, v in (("before", before), ("after", after)) if v is not None}
    if stages:
        facts["stages"] = [{key: v for key, v in asdict(stage).items() if v is not None} for stage in stages]
    return replace(artifact, facts=facts)


def number(value: Any) -> float | None:
    """Returns a finite number as float, and None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def table(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns a table among the facts, empty if there is none."""
    value = facts.get(key)
    return value if isinstance(value, Mapping) else {}


def stages_of(facts: Mapping[str, Any]) -> tuple[Stage, ...]:
    """Returns the stages that the facts tell of; what is no stage is passed over."""
    found = facts.get("stages")
    entries = [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list | tuple) else []
    stages = []
    for entry in entries:
        size = number(entry.get("bytes"))
        if size is not None and size >= 0 and isinstance(entry.get("name"), str):
            stages.append(Stage(entry["name"], int(size), number(entry.get("accuracy"))))
    return tuple(stages)


def accuracy(facts: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Returns the user's metric before and after, None where it isn't known."""
    own = table(facts, "accuracy")
    before, after = number(own.get("before")), number(own.get("after"))
    measured = [stage.accuracy for stage in stages_of(facts) if stage.accuracy is not None]
    if len(measured) > 1:
        return (measured[0] if before is None else before), (measured[-1] if after is None else after)
    return before, after


def macs(facts: Mapping[str, Any]) -> tuple[int, int] | None:
    """Returns the multiplications for one input before and after cuts, None if both aren't known.

    >>> macs({"macs": {"before": 300, "after": 100}}), macs({"macs": {"before": -1, "after": "many"}})
    ((300, 100), None)
    """
    own = numbers(facts, "macs")
    before, after = own.get("before", -1.0), own.get("after", -1.0)
    return (int(before), int(after)) if before > 0 and after >= 0 else None


def numbers(facts: Mapping[str, Any], key: str) -> dict[str, float]:
    """Returns a table of numbers among the facts, such as the error of each layer."""
    return {name: value for name, entry in table(facts, key).items() if (value := number(entry)) is not None}


def notes(facts: Mapping[str, Any]) -> dict[str, str]:
    """Returns the notes: what was left as it was, and why."""
    return {name: note for name, note in table(facts, "notes").items() if isinstance(note, str)}
