"""Halting that can be trusted: thresholds with a guarantee."""
