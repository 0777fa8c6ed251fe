"""Training a cut subject against the original: losses, teachers, the training loop, compensation without training."""
