"""Judge, tabulate, draw."""
