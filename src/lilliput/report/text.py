"""Numbers in words, the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

BARS = " ▁▂▃▄▅▆▇█"
UNITS = ("B", "kB", "MB", "GB", "TB")


def size_text(count: float) -> str:
    """Returns bytes with three digits and a decimal unit, as budgets are written.

    >>> size_text(999), size_text(34213), size_text(1_300_000)
    ('999 B', '34.2 kB', '1.30 MB')
    """
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 else f"{digits(value)} {UNITS[unit]}"


def digits(value: float | None, count: int = 3) -> str:
    """Returns a number with so many digits, and a dash where there is none.

    >>> digits(12.3456), digits(0.00123456), digits(None), digits(1234567.0)
    ('12.3', '0.00123', '–', '1,234,567')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 10**count:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.{count - 1}e}"
    value = float(f"{value:.{count - 1}e}")
    places = count - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{max(places, 0)}f}"


def percent(part: float | None) -> str:
    """Returns a part of one as per cent.

    >>> percent(0.5), percent(0.0004), percent(0.0), percent(None)
    ('50.0 %', '<0.1 %', '0 %', '–')
    """
    if part is None:
        return "–"
    if 0 < part < 0.0005:
        return "<0.1 %"
    return f"{100 * part:.1f} %" if part else "0 %"


def metric(value: float | None) -> str:
    """Returns a user's metric with four digits after the point: nothing is known of its range."""
    return "–" if value is None else f"{value:.4f}"


def shape_text(shape: Sequence[int]) -> str:
    """Returns a shape such as `16 × 3 × 3 × 3`, and `scalar` where there are no axes."""
    return " × ".join(str(size) for size in shape) or "scalar"


def sparkline(counts: Sequence[int], width: int = 16) -> str:
    """Returns a histogram as a line of block characters, its bars taken together to `width`.

    >>> sparkline([0, 1, 2, 4, 8, 4, 2, 1], width=8)
    ' ▁▂▄█▄▂▁'
    """
    group = max(len(counts) // width, 1)
    bars = [sum(counts[start : start + group]) for start in range(0, len(counts), group)]
    top = max(bars, default=0)
    if not top:
        return " " * len(bars)
    return "".join(BARS[math.ceil(8 * bar / top) if bar else 0] for bar in bars)


def printable(text: str) -> str:
    """Replaces what a terminal might take for a command: names and notes may come from a stranger's file."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
