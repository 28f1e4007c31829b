"""How the ranges and roundings of a quantizer are found; one solver a file."""
