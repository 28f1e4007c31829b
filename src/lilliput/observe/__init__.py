"""One look at a model on data: what it does, and how much each weight matters to it."""
