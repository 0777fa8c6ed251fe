"""Recipes for vision models and other networks."""
