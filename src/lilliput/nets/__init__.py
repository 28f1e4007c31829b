"""Compact and reference networks, one a file: settings with `build()`, whose counts are those of the papers."""
