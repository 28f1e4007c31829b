"""A progress bar on stderr, with the time that is left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(now: Callable[[], tuple[int, int, float]], wanted: bool | None = None) -> Iterator[Callable[[], None]]:
    """Shows a bar while the context lasts.

    Args:
        now: returns (steps that are over, all steps or 0 if that isn't known, loss).
        wanted: whether to show it; None if stderr is a terminal.

    Yields:
        What to call after each step.
    """
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("training", total=None, loss=float("nan"))

        def step_done() -> None:
            done, total, loss = now()
            shown.update(task, completed=done, total=total or None, loss=loss)

        yield step_done
