"""Normalizing flows on features."""
