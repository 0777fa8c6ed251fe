"""Losses against a teacher, and teachers: live, cached, several."""
