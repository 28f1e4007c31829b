"""The program: its verbs, its exit codes, and what becomes of an error."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

import lilliput
from lilliput.cli.terminal import UsageError, complain
from lilliput.core.errors import BudgetError, LilliputError, LilliputWarning

# Verbs in the order in which they are used. Their files are thin: what a verb needs is imported when it is called.
VERBS = ("plan", "sensitivity", "cut", "compress", "inspect", "run", "compare", "bench", "hardware", "list", "report")
FAILURE, USAGE, UNMET, INTERRUPTED = 1, 2, 3, 130

app = App(
    name="lilliput",
    help="Makes a trained PyTorch network small: one safe file that runs without the model's class.\n\n"
    "  lilliput compress net.py:build --weights net.pth --input 1x3x224x224 --recipe int8 -o net.safetensors\n"
    "  lilliput inspect net.safetensors\n"
    "  lilliput run net.safetensors --input 1x3x224x224\n\n"
    "A model is file.py:function or package.module:function; it is called without arguments. "
    "Every verb takes --json. Exit codes: 0 done, 1 refused (one line says why), 2 wrong usage, "
    "3 the budget can't be met, 130 interrupted.",
    version=lilliput.__version__,
    version_flags=["--version"],
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(negative=(), show_default=False),
)
for _place, _verb in enumerate(VERBS):
    _function = vars(importlib.import_module(f"lilliput.cli.{_verb}"))[_verb]
    app.command(_function, name=_verb, sort_key=_place)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: without the program's name; by default those of the process.

    Returns:
        The exit code: 0 done, 1 an error that the user can mend, 2 wrong usage, 3 the budget can't be met,
        130 interrupted by Ctrl-C.
    """
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn(warnings.showwarning)
            app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except (CycloptsError, LilliputError, OSError, MemoryError, KeyboardInterrupt) as error:
        return _refuse(error, tokens)
    return 0


def _refuse(error: BaseException, tokens: Sequence[str]) -> int:
    """Says in one line what went wrong, and returns the exit code."""
    if isinstance(error, CycloptsError):
        verb = f"{tokens[0]} " if tokens and tokens[0] in VERBS else ""
        complain(f"{error} (see lilliput {verb}--help)")
        return USAGE
    if isinstance(error, KeyboardInterrupt):
        complain("interrupted; no file was written")
        return INTERRUPTED
    if isinstance(error, OSError) and error.filename:
        complain(f"{error.filename}: {error.strerror}")
    elif isinstance(error, MemoryError):
        complain("there isn't memory enough")
    else:
        complain(error)
    if isinstance(error, UsageError):
        return USAGE
    return UNMET if isinstance(error, BudgetError) else FAILURE


def _warn(usual: Callable[..., Any]) -> Callable[..., Any]:
    """Shows our own warnings as one line; others as Python does."""

    def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, LilliputWarning):
            complain(message, "warning")
        else:
            usual(message, category, *rest, **named)

    return show
