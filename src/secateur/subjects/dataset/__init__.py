"""Training sets as subjects."""
