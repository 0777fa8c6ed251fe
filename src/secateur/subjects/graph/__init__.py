"""Graphs of facts, and the paths in them."""
