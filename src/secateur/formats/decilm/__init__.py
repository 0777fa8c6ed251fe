"""The configuration and modelling files that travel with a DeciLM export; see `subjects.transformer.subject.export`."""
