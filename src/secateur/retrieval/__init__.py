"""Sentence encoders, rerankers, and an index of names in texts."""
