"""Training on solutions in steps: trainer and recipe."""
