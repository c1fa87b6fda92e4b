"""How a network gets its weights."""
