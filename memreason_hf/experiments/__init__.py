"""Experiments that can be repeated: one folder each, with all of it inside."""
