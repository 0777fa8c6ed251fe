"""Quantised weights and activations, after training and during it."""
