"""ON DISK: run directories, texts, packages fetched by name, checkpoints."""
