"""Weights that share values: one method a file."""
