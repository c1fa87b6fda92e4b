"""Which images play which role."""
