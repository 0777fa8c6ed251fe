"""Recipes that prune what a network learns from."""
