"""Editions for students, teachers and a grader, and slides."""
