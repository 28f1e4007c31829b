"""Our graph in the words of other engines."""
