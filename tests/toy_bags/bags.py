"""Bags of weighted strings, of which some go; what stays has to fit into a budget of bytes."""

from __future__ import annotations

import numpy as np

from secateur.vocabulary import Cut, Selection, Site, Units


class Bag:
    """Strings, and how much each is worth."""

    backend = "toy_bags.backend:Bags"

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights

    def units(self, *axes: str) -> Units:
        """One unit for each string, which costs its bytes."""
        sizes = np.array([len(string.encode()) for string in self.weights], float)
        return Units({"strings": Site("strings", len(sizes), {"bytes": sizes}, minimum=1)}, base={"bytes": 0.0})

    def cut(self, selection: Selection) -> tuple[Bag, Cut]:
        """A bag of the strings that stay."""
        keep = np.asarray(selection.keep["strings"], bool)
        small = Bag({name: weight for (name, weight), stays in zip(self.weights.items(), keep, strict=True) if stays})
        removed = {"strings": (int((~keep).sum()), len(keep))}
        return small, Cut(removed, self.units().cost(), small.units().cost())
