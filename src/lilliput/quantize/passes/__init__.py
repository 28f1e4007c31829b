"""Passes over the whole network before or after its weights are quantized, one a file."""
