"""Zeros in place of smaller tensors: unstructured, n:m, and mixtures of experts."""
