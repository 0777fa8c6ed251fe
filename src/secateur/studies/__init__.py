"""QUESTIONS over recipes: is it better than what is simple, at equal cost?"""
