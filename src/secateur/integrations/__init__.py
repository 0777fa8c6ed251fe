"""Post-processors for retrieval pipelines, one library per file."""
