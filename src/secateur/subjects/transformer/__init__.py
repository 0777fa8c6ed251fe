"""Transformers as transformers builds them: encoders, decoders, mixtures of experts, in memory or on the disk."""
