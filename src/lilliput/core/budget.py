"""`Budget`: what must hold of the compressed network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lilliput.core.errors import BudgetError

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}


@dataclass(frozen=True)
class Budget:
    """What must hold; None where nothing is asked.

    Attributes:
        size: largest file in bytes, or as text: `"1 MB"`, `"300 kB"`, `"2 MiB"`, or a part of the uncompressed
            parameters, `"0.1x"`.
        max_drop: largest allowed drop of the user's metric, in its own units (0.005 is half a point of an accuracy
            from 0 to 1).

    >>> Budget(size="1.5 MB").bytes(original=10_000_000)
    1500000
    >>> Budget(size="0.1x").bytes(original=10_000_000)
    1000000
    """

    size: int | str | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            self.bytes(original=1 << 40)
        if self.max_drop is not None and not 0 <= self.max_drop < float("inf"):
            raise BudgetError(f"max_drop = {self.max_drop} must be zero or more, in the units of your metric")

    def bytes(self, original: int) -> int:
        """Returns the size in bytes.

        Args:
            original: bytes of the uncompressed parameters, for a relative size.

        Raises:
            BudgetError: if no size is asked for, or it can't be read.
        """
        if isinstance(self.size, int) and not isinstance(self.size, bool):
            size: float = self.size
        elif isinstance(self.size, str):
            found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", self.size)
            unit = found[2].upper() if found else "?"
            if found and unit == "X":
                size = float(found[1]) * original
            elif found and unit in UNITS:
                size = float(found[1]) * UNITS[unit]
            else:
                raise BudgetError(f"size = {self.size!r} can't be read; write it as '1 MB', '300 kB' or '0.1x'")
        else:
            raise BudgetError(f"size = {self.size!r}; write it in bytes, or as '1 MB', '300 kB' or '0.1x'")
        if size < 1:
            raise BudgetError(f"size = {self.size!r} leaves no room for any file")
        if size >= 2**63:
            raise BudgetError(f"size = {self.size!r} is larger than any file; write it as '1 MB', '300 kB' or '0.1x'")
        return int(size)
