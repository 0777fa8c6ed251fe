"""Scores: how much each unit is worth keeping, one named formula per function. Higher means keep."""
