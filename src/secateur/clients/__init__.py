"""Clients of chat models, embedding servers and RDF stores: over HTTP, or local in their place."""
