"""Recipes that prune training sets."""
