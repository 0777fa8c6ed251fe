"""Measurements: size, latency, memory, quality, retrieval and statistics."""
