"""Training on chains: trainer, arguments, curriculum and recipe."""
