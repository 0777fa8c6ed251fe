"""Documents as subjects: HTML pages and retrieved passages."""
