"""The model as a graph: traced, simplified, folded, cut, written as JSON and run without its class."""
