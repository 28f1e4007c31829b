"""From a budget to a recipe: what each setting of each layer costs and saves, and the best choice among them."""
