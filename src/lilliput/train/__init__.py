"""Compressing a model: at once, or attached to it while the user's own loop trains."""
