"""Pictures as inline SVG: bars, a treemap, two strips and a small histogram; colours come from the page's classes."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lilliput.report.distribution import Distribution
from lilliput.report.text import printable

# Width of a character at the pictures' font size, in its units; enough to tell whether a label fits.
CHARACTER = 6.9


@dataclass(frozen=True)
class Item:
    """One mark of a picture.

    Attributes:
        label: its name.
        value: zero or more; what length or area stands for.
        text: the value in words.
        tone: number of its colour, or -1 for grey.
    """

    label: str
    value: float
    text: str
    tone: int = 0


@dataclass(frozen=True)
class Box:
    """A rectangle of a treemap: left, top, width and height."""

    x: float
    y: float
    width: float
    height: float


def svg(width: float, height: float, parts: Iterable[str], title: str, description: str = "") -> str:
    """Returns a picture with a title and a description for those who can't see it.

    Args:
        width: of the picture's own units; on the page it fills the width that there is.
        height: of the picture's own units.
        parts: SVG elements.
        title: what it is.
        description: what it shows, in a sentence.
    """
    about = f"<title>{escaped(title)}</title>" + (f"<desc>{escaped(description)}</desc>" if description else "")
    label = escaped(f"{title}. {description}" if description else title)
    head = f'<svg viewBox="0 0 {number(width)} {number(height)}" role="img" aria-label="{label}">'
    return head + about + "".join(parts) + "</svg>"


def escaped(content: str) -> str:
    """Returns text as XML may hold it: names may come from a stranger's file."""
    return html.escape(printable(content))


def number(value: float) -> str:
    """Returns a coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def fitting(label: str, room: float) -> str:
    """Returns a label cut to the room that it has, in the picture's units; "" where nothing readable fits."""
    count = int(room / CHARACTER)
    if len(label) <= count:
        return label
    return label[: count - 1] + "…" if count >= 4 else ""


def rectangle(box: Box, style: str, title: str = "") -> str:
    """Returns a rectangle of a class, with a tooltip."""
    tip = f"<title>{escaped(title)}</title>" if title else ""
    return (
        f'<rect class="{style}" x="{number(box.x)}" y="{number(box.y)}" '
        f'width="{number(max(box.width, 0))}" height="{number(max(box.height, 0))}">{tip}</rect>'
    )


def text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> str:
    """Returns a line of text."""
    return f'<text class="{style}" x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{escaped(content)}</text>'


def levels(rows: Sequence[tuple[str, Sequence[Sequence[Item]]]], title: str, label_width: float = 170) -> str:
    """Draws for each row some thin bars under one another, each made of parts: before and after, part by part.

    Args:
        rows: a label and its bars; the parts of a bar in their order.
        title: what the lengths are.
        label_width: room for the labels, of 760 in all.
    """
    width, tail, thick = 760.0, 90.0, 10.0
    totals = [sum(item.value for item in bar) for _, bars_ in rows for bar in bars_]
    scale = (width - label_width - tail) / (max(totals, default=0.0) or 1.0)
    parts, y = [], 0.0
    for label, bars_ in rows:
        parts.append(text(label_width - 10, y + 15, fitting(label, label_width - 14), "name", "end"))
        for bar in bars_:
            x = label_width
            for item in bar:
                length = item.value * scale
                tip = f"{label}, {item.label}: {item.text}"
                parts.append(rectangle(Box(x, y + 2, max(length - 0.5, 0.2), thick - 1), f"bar t{item.tone}", tip))
                x += length
            y += thick
        y += 8
    return svg(width, y, parts, title, f"{len(rows)} rows")


def bars(items: Sequence[Item], title: str, label_width: float = 200) -> str:
    """Draws horizontal bars, one a row: the label on the left, the value in words at the bar's end.

    Args:
        items: from top to bottom.
        title: what the lengths are.
        label_width: room for the labels, of 760 in all.
    """
    row, width, tail = 24.0, 760.0, 150.0
    top = max((item.value for item in items), default=0.0) or 1.0
    parts = []
    for index, item in enumerate(items):
        y = index * row
        length = max(item.value / top * (width - label_width - tail), 1.5)
        words = f"{item.label}: {item.text}"
        parts += [
            text(label_width - 10, y + 16, fitting(item.label, label_width - 14), "name", "end"),
            rectangle(Box(label_width, y + 4, length, 15), f"bar t{item.tone}", words),
            text(label_width + length + 7, y + 16, item.text, "value"),
        ]
    described = "; ".join(f"{item.label}: {item.text}" for item in items[:12])
    return svg(width, row * max(len(items), 1), parts, title, described)


def treemap(items: Sequence[Item], title: str, width: float = 760, height: float = 330) -> str:
    """Draws areas that fill a rectangle, each as large as its value; labels stand where they fit."""
    shown = sorted((item for item in items if item.value > 0), key=lambda item: -item.value)
    parts = []
    for item, box in zip(shown, squarify([item.value for item in shown], Box(0, 0, width, height))):
        inner = Box(box.x + 1, box.y + 1, box.width - 2, box.height - 2)
        parts.append(rectangle(inner, f"area t{item.tone}", f"{item.label}: {item.text}"))
        if box.height > 20:
            parts.append(text(box.x + 7, box.y + 17, fitting(item.label, box.width - 12), "name"))
        if box.height > 36:
            parts.append(text(box.x + 7, box.y + 32, fitting(item.text, box.width - 12), "value"))
    described = "; ".join(f"{item.label}: {item.text}" for item in shown[:12])
    return svg(width, height, parts, title, described)


def squarify(values: Sequence[float], room: Box) -> list[Box]:
    """Divides a rectangle into parts as near to squares as can be (Bruls, Huizing and van Wijk 2000).

    Args:
        values: positive, descending.
        room: what is divided.

    Returns:
        A box for each value; areas are proportional to values.

    >>> [box.width for box in squarify([3.0, 1.0], Box(0, 0, 4, 1))]
    [3.0, 1.0]
    """
    boxes: list[Box] = []
    left = list(values)
    while left:
        # Anew in each round, so that what rounding left over goes to those that are still to come.
        scale = room.width * room.height / (math.fsum(left) or 1.0)
        side = min(room.width, room.height)
        count = 1
        while count < len(left) and _worst(left[: count + 1], side, scale) <= _worst(left[:count], side, scale):
            count += 1
        row, left = left[:count], left[count:]
        placed, room = _row([value * scale for value in row], room)
        boxes += placed
    return boxes


def _worst(row: Sequence[float], side: float, scale: float) -> float:
    """Largest ratio of sides in a row of areas along a side."""
    total = sum(row) * scale
    if total <= 0 or side <= 0:
        return float("inf")
    largest, smallest = max(row) * scale, min(row) * scale
    return max(side**2 * largest / total**2, total**2 / (side**2 * smallest))


def _row(areas: Sequence[float], room: Box) -> tuple[list[Box], Box]:
    """Lays areas along the shorter side of the room; returns their boxes and the room that is left."""
    placed, total = [], sum(areas)
    if room.width >= room.height:
        depth, y = (total / room.height if room.height else 0.0), room.y
        for area in areas:
            placed.append(Box(room.x, y, depth, area / depth if depth else 0.0))
            y += placed[-1].height
        return placed, Box(room.x + depth, room.y, max(room.width - depth, 0.0), room.height)
    depth, x = total / room.width, room.x
    for area in areas:
        placed.append(Box(x, room.y, area / depth if depth else 0.0, depth))
        x += placed[-1].width
    return placed, Box(room.x, room.y + depth, room.width, max(room.height - depth, 0.0))


def strip(items: Sequence[Item], title: str, width: float = 760) -> str:
    """Draws one bar cut into parts, in order."""
    total = sum(item.value for item in items) or 1.0
    parts, x = [], 0.0
    for item in items:
        length = item.value / total * width
        parts.append(rectangle(Box(x, 0, max(length - 1, 0.3), 26), f"area t{item.tone}", f"{item.label}: {item.text}"))
        shown = fitting(item.label, length - 10)
        if shown:
            parts.append(text(x + 6, 17, shown, "name"))
        x += length
    return svg(width, 26, parts, title, "; ".join(f"{item.label}: {item.text}" for item in items[:12]))


def spread(before: Distribution | None, after: Distribution | None, name: str) -> str:
    """Draws how values are spread: before in grey behind, after in colour; zeros are left out."""
    width, height = 128.0, 34.0
    parts = []
    for found, style in ((before, "past"), (after, "present")):
        if found is None or not any(found.counts):
            continue
        top, step = max(found.counts), width / len(found.counts)
        inset = 0.0 if style == "past" else 0.7
        path = "".join(
            f"M{number(i * step + inset)} {number(height)}V{number(height - max(count / top * (height - 2), 0.8))}"
            f"h{number(step - 2 * inset)}V{number(height)}z"
            for i, count in enumerate(found.counts)
            if count
        )
        parts.append(f'<path class="{style}" d="{path}"/>')
    parts.append(f'<path class="axis" d="M0 {number(height)}H{number(width)}"/>')
    return svg(width, height + 1, parts, f"Values of {name}")
