"""Nouns and contracts: what every other folder speaks of; imports only torch, msgspec and the standard library."""
