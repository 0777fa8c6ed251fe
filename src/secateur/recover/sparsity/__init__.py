"""Training that makes weights zero, and compensation for what is cut."""
