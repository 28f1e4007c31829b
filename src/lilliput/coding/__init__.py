"""Lossless codings of integer arrays, one a file; `choose` takes the smallest."""
