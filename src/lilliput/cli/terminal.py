"""What the verbs show: one line of complaint, progress on stderr, and tables or JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lilliput.core.errors import LilliputError
from lilliput.report.text import printable

if TYPE_CHECKING:
    from rich.table import Table

# Widest table that is written where nobody watches, in characters.
MOST = 1000


class UsageError(LilliputError):
    """Options that can't be understood, or don't go together; the exit code is 2."""


def complain(message: object, kind: str = "error") -> None:
    """Writes one line to stderr."""
    print(f"lilliput: {kind}: {printable(' '.join(str(message).split()))}", file=sys.stderr)


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Shows on stderr that something goes on, if somebody watches; what the user's code prints goes to stderr too.

    Args:
        what: a word or two, such as `compressing`.

    Yields:
        A function to be told of progress: stage, how much of it is done, and of how much.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if not sys.stderr.isatty():
            yield lambda stage, done, total: None
            return
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status(Text(f"{what} …")) as status:

            def told(stage: str, done: int, total: int) -> None:
                status.update(Text(f"{what}: {stage} {done} of {total} …"))

            yield told


def show_json(data: Any) -> None:
    """Writes data as JSON to stdout; numbers that JSON doesn't know become null."""
    print(json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False))


def finite(data: Any) -> Any:
    """Returns the data with NaN and infinities replaced by None.

    >>> finite({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    if isinstance(data, float) and not (float("-inf") < data < float("inf")):
        return None
    return data


def say(line: str = "") -> None:
    """Writes a line to stdout."""
    print(printable(line))


def new_table(*columns: str, title: str = "") -> Table:
    """Returns a table; a column whose name begins with `>` is right-aligned, one with `~` may be folded."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=Text(title) if title else None, title_justify="left", pad_edge=False)
    for column in columns:
        justify = "right" if column.startswith(">") else "left"
        overflow = "fold" if column.startswith("~") else "ellipsis"
        header = Text(column.lstrip(">~"))
        fixed = overflow == "ellipsis"
        made.add_column(header, justify=justify, overflow=overflow, no_wrap=fixed)  # type: ignore[arg-type]
    return made


def add_row(table: Table, cells: Sequence[str]) -> None:
    """Adds a row of plain text: no markup in names that may come from a stranger."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells))


def show_table(table: Table) -> None:
    """Writes a table to stdout, as wide as it needs where nobody watches."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.measure(table, options=console.options.update(max_width=MOST)).maximum, 1))
    console.print(table)


def check_outputs(*outputs: Path | None, sources: Sequence[str | Path | None] = ()) -> None:
    """Refuses, before any work, outputs that could not be written in the end.

    An output that exists is replaced, as compilers and archivers do: commands are run again, and what is written
    appears whole or not at all. But an input is never overwritten by its own result.

    Raises:
        UsageError: an output is also an input, or another output.
        FileError: its folder is missing, or it is a folder itself.
    """
    from lilliput.core.errors import FileError

    taken = {os.path.realpath(source) for source in sources if source and os.path.exists(source)}
    for output in outputs:
        if output is None:
            continue
        where = os.path.realpath(output)
        if where in taken:
            raise UsageError(f"{output} is an input, or another output, of this command: choose another name")
        taken.add(where)
        if not os.path.isdir(os.path.dirname(where)):
            raise FileError(f"{output}: can't be written: the folder {os.path.dirname(where)} doesn't exist")
        if os.path.isdir(where):
            raise FileError(f"{output}: can't be written: it is a folder")


def check_ending(path: Path, *endings: str) -> None:
    """Raises UsageError unless the path ends in one of these."""
    if path.suffix.lower() not in endings:
        raise UsageError(f"{path}: must end in {' or '.join(endings)}")
