"""Distillation losses: one a file."""
