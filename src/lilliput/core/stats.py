"""`Stats`: what one calibration pass collected for a weight, by the names of what methods need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lilliput.core.errors import MethodError


@dataclass(frozen=True, eq=False)
class Stats:
    """What was collected for one weight; never changed, so that copies of a model share it.

    Attributes:
        values: by need, such as `"gram"`; what each holds is stated where it is collected, in `observe/`.
        missing: needs that couldn't be met, and why.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: Any) -> Stats:
        return self


def needed(stats: Any, need: str, method: str) -> Any:
    """Returns what was collected under a need.

    Args:
        stats: as given to `pack`: `Stats`, or None.
        need: its name.
        method: for the message.

    Raises:
        MethodError: it wasn't collected; says why, or that data must be given.

    >>> needed(Stats({"gram": 1}), "gram", "prune/obc")
    1
    """
    if isinstance(stats, Stats):
        if need in stats.values:
            return stats.values[need]
        if need in stats.missing:
            raise MethodError(f"{method}: {stats.missing[need]}")
        raise MethodError(f"{method}: needs '{need}', which these stats don't hold; collect it too")
    raise MethodError(
        f"{method}: needs data: give data=, batches of inputs to calibrate on (a factor of a weight has no inputs)"
    )
