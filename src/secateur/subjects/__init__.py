"""WHAT is pruned: one kind of thing per file, with `units(...)` and `cut(selection)`."""
