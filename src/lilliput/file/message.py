"""What a stranger's file made some other code say, as one line that can be shown."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    r"""Returns an error's message as one printable line of at most 400 characters.

    >>> one_line(ValueError("no such" + chr(10) + "key: " + chr(0)))
    'no such key: \\x00'
    """
    text = " ".join(str(error).split())[:400]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text) or type(error).__name__
