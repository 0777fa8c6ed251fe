"""The configuration and modelling files that travel with a DeciLM export; see `secateur.subjects.export`."""
