"""Models behind a server: batching by depth, and the demo page."""
