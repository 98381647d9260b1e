"""Rules that decide when to stop, side by side: criteria, learned gates, calibrated thresholds and the oracle."""
