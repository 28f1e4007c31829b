"""Mathematics that several methods share: no models, no recipes, only tensors and numbers."""
