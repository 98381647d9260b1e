"""A training step that follows from its number: batches, depth, losses, what is logged."""
