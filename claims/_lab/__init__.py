"""What the claims share: cards, verdicts, rows and digests; data, models and short trainings."""
