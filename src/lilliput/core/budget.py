"""`Budget`: what must hold of the compressed network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from lilliput.core.errors import BudgetError

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}


COUNTS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

TIMES = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}

Count = Literal["macs", "parameters"]
"""What can be limited by number."""


@dataclass(frozen=True)
class Budget:
    """What must hold; None where nothing is asked.

    Attributes:
        size: largest file in bytes, or as text: `"1 MB"`, `"300 kB"`, `"2 MiB"`, or a part of the uncompressed
            parameters, `"0.1x"`.
        max_drop: largest allowed drop of the user's metric, in its own units (0.005 is half a point of an accuracy
            from 0 to 1).
        macs: most multiplications with addition for one input, as a number or as text: `"300M"`, `"1.2G"`, or a part of
            the uncompressed network's, `"50%"`, `"0.5x"`, `"2x fewer"`.
        parameters: most parameters, in the same words.
        energy: most energy for one input on `device`, in the device's unit, or a part of the uncompressed network's:
            `"40%"`, `"0.4x"`, `"3x less"`.
        device: on which, one of `hardware/devices` or a `.toml` file.
        activations: most bits of a number that goes into a layer, the mean over all such numbers, 2 to 8.
        latency: longest time for one input, as text: `"5 ms"`, `"300 us"`, or a part of the uncompressed network's,
            `"0.5x"`, `"50%"`, `"2x faster"`; or in seconds.

    >>> Budget(size="1.5 MB").bytes(original=10_000_000)
    1500000
    >>> Budget(size="0.1x").bytes(original=10_000_000)
    1000000
    >>> Budget(macs="2x fewer").count("macs", original=3_000)
    1500
    """

    size: int | str | None = None
    max_drop: float | None = None
    macs: int | str | None = None
    parameters: int | str | None = None
    energy: float | str | None = None
    device: str = "eyeriss"
    activations: float | None = None
    latency: float | str | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            self.bytes(original=1 << 40)
        for what in self.counts:
            self.count(what, original=1 << 40)
        if self.energy is not None:
            self.energies(original=1.0)
        if self.latency is not None:
            self.seconds(original=1.0)
        if self.max_drop is not None and not 0 <= self.max_drop < float("inf"):
            raise BudgetError(f"max_drop = {self.max_drop} must be zero or more, in the units of your metric")
        if self.activations is not None and not 2 <= self.activations <= 8:
            raise BudgetError(f"activations = {self.activations} bits a number must be from 2 to 8")
        if self.activations is not None and self.counts:
            raise BudgetError(
                "activations and a number of MACs or parameters: cut first, then plan what `compress` gives"
            )

    @property
    def counts(self) -> tuple[Count, ...]:
        """Which numbers are limited."""
        limited: dict[Count, Any] = {"macs": self.macs, "parameters": self.parameters}
        return tuple(what for what, most in limited.items() if most is not None)

    def count(self, what: Count, original: int) -> int:
        """Returns the largest number of MACs or parameters.

        Args:
            what: which.
            original: of the uncompressed network, for a part of it.

        Raises:
            BudgetError: none is asked for, or it can't be read.
        """
        most = self.macs if what == "macs" else self.parameters
        words = f"{what} = {most!r}"
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z%]*)(\s+fewer)?\s*", str(most))
        if most is None or isinstance(most, bool | float) or found is None:
            raise BudgetError(f"{words} can't be read; write it as a whole number, '300M', '50%' or '2x fewer'")
        number, unit, fewer = float(found[1]), found[2].upper(), bool(found[3])
        if unit in ("X", "%") and not (fewer and unit == "%"):
            part = number / 100 if unit == "%" else number
            number = original / max(part, 1e-12) if fewer else original * part
        elif unit in COUNTS and not fewer:
            number *= COUNTS[unit]
        else:
            raise BudgetError(f"{words} can't be read; write it as a whole number, '300M', '50%' or '2x fewer'")
        if not 1 <= number < 2**63:
            raise BudgetError(f"{words} is {number:.3g}: no network has as many")
        return int(number)

    def energies(self, original: float) -> float:
        """Returns the most energy, in the device's unit.

        Args:
            original: of the uncompressed network, for a part of it.

        Raises:
            BudgetError: none is asked for, or it can't be read.

        >>> Budget(energy="3x less").energies(original=600.0)
        200.0
        """
        words = f"energy = {self.energy!r}"
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][0-9]+)?)\s*([xX%]?)(\s*less)?\s*", str(self.energy))
        if (
            self.energy is None
            or isinstance(self.energy, bool)
            or found is None
            or (found[3] and found[2] in ("", "%"))
        ):
            raise BudgetError(f"{words} can't be read; write it as a number, '40%', '0.4x' or '3x less'")
        number = float(found[1])
        if not 0 < number < float("inf"):
            raise BudgetError(f"{words}: no network takes so little")
        if not found[2]:
            return number
        return original / number if found[3] else original * number / (100 if found[2] == "%" else 1)

    def seconds(self, original: float) -> float:
        """Returns the longest latency.

        Args:
            original: of the uncompressed network, for a part of it.

        Raises:
            BudgetError: none is asked for, or it can't be read.

        >>> Budget(latency="2x faster").seconds(original=0.5), Budget(latency="5 ms").seconds(original=0.5)
        (0.25, 0.005)
        """
        words = f"latency = {self.latency!r} can't be read; write it as '5 ms', '0.5x', '50%' or '2x faster'"
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-zµ%]*)(\s+faster)?\s*", str(self.latency))
        if self.latency is None or isinstance(self.latency, bool) or found is None:
            raise BudgetError(words)
        number, unit, faster = float(found[1]), found[2].lower(), bool(found[3])
        if number <= 0 or (faster and unit != "x"):
            raise BudgetError(words)
        if unit in {"x", "%"}:
            part = number / 100 if unit == "%" else number
            return original / part if faster else original * part
        if unit not in TIMES or (not unit and isinstance(self.latency, str)):
            raise BudgetError(words)
        return number * TIMES[unit]

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
