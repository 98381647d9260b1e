"""Parsers, shared flags and error messages of the commands."""
