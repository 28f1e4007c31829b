"""The report of a compressed network: what was done to each layer, what it cost and where the bytes of the file are."""
