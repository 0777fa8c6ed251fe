"""Recipes that prune what a model is trained on."""
