"""One small safe file: the artifact, how it is laid out, written and read."""
