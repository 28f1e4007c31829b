"""Low-rank and tensor factorizations: one a file."""
