"""Recipes that set single weights to zero: unstructured, n:m, and mixtures of experts."""
