"""Training on text: packed rows in memory or from a stream, a token budget, and a choice of what is trained."""
