"""Sentence encoders, rerankers, and which named things a text speaks of."""
