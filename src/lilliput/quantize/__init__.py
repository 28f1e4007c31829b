"""Quantizers of weights: one a file."""
