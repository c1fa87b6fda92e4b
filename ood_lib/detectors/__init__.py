"""A detector is an energy on a representation.  Larger score = more OOD."""
