"""What a model reads: pages, passages, graphs."""
