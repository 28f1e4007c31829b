"""The command line: one file a verb, and nothing heavy imported before a verb needs it."""

from lilliput.cli.app import main

__all__ = ["main"]
