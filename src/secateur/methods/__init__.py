"""Wiring that two or more recipes share."""
