"""TRAINING against the original: losses, teachers, the loop, compensation."""
