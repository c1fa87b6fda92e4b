"""Notebooks as tasks: planned, run side by side or on a cluster, compared."""
