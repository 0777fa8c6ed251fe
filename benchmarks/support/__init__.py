"""What several benchmarks share; nothing beyond the standard library, so that a peer's Python can import it too."""
