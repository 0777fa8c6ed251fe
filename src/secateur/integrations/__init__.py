"""Post-processors for retrieval pipelines and callbacks of trainers, one library per file."""
