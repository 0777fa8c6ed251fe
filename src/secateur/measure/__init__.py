"""NUMBERS: size, latency, memory, quality, statistics, and the evidence they make."""
