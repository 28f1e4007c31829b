"""Quantizers of what goes into a layer, one a file."""
