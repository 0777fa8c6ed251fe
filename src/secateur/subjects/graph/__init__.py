"""Knowledge graphs as subjects: their facts and paths."""
