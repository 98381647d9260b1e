"""Answers to chains: accuracy by group and recurrence, halting statistics, results files."""
