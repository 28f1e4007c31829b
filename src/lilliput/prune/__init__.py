"""Pruning: one criterion, pattern or schedule a file."""
