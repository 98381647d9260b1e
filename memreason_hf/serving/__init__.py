"""Models behind a server: the demo page."""
