"""What training changed in a model: two checkpoints, or a base and its LoRA adapter, entry by entry."""
