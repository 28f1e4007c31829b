"""What a training in several processes says when one of them dies: one line, and where it can be gone on from."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lilliput.core.errors import ExchangeError

GONE = re.compile(r"gloo|nccl|Connection (closed|reset)", re.IGNORECASE)
"""What torch's own errors say of another process that doesn't answer."""


@contextmanager
def lost(where: Callable[[], str], advice: Callable[[], str]) -> Iterator[None]:
    """Makes an `ExchangeError` of all that the death of another process does to this one.

    Either the exchange breaks, in a hook or in torch's own reduction, or torchrun, which has seen the death first,
    sends SIGTERM. The latter is caught under torchrun alone, in the main thread, and where nobody else has asked for
    it; once an error is on its way, the SIGTERM that comes after it doesn't cut its message off.

    Args:
        where: says which process this is and in which step it is.
        advice: says what to do.

    Raises:
        ExchangeError: in place of the above.

    >>> with lost(lambda: "process 0", lambda: "start again"):
    ...     raise RuntimeError("gloo: closed")
    Traceback (most recent call last):
    lilliput.core.errors.ExchangeError: process 0 lost the others: one ended or hangs (gloo: closed); start again
    """
    ours = (
        "TORCHELASTIC_RUN_ID" in os.environ
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )

    def ended(number: int, frame: FrameType | None) -> None:
        raise ExchangeError(f"{where()} was told to end, as torchrun does when another has died")

    if ours:
        signal.signal(signal.SIGTERM, ended)
    broken: ExchangeError | None = None
    try:
        yield
    except ExchangeError as error:
        broken = error
    except RuntimeError as error:
        if not GONE.search(str(error)):
            raise
        reason = str(error).strip().splitlines()[0][:160]
        broken = ExchangeError(f"{where()} lost the others: one ended or hangs ({reason})")
    finally:
        if ours:
            signal.signal(signal.SIGTERM, _once if broken is not None else signal.SIG_DFL)
    if broken is not None:
        raise ExchangeError(f"{broken}; {advice()}") from broken


def _once(number: int, frame: FrameType | None) -> None:
    """Lets one SIGTERM pass: this process is on its way out already."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
