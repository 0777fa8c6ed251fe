"""What a model reads: HTML pages and retrieved passages."""
