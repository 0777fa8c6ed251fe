"""Recipes that prune what a language model reads: pages, passages, graphs."""
