"""Engines: what turns an artifact into something that runs, one a file."""
