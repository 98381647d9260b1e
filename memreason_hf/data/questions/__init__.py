"""Questions annotated with memory and reason steps."""
