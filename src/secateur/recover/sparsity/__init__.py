"""Training that leads to zeros, and what makes up for what is cut."""
