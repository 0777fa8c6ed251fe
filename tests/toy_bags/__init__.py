"""A package beside secateur: a kind of subject of its own, with its backend and a recipe."""
