"""Helpers without any term of pruning: atomic files, threads, processes, HTTP."""
