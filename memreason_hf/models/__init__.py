"""Models from a folder, the Hub or an adapter, and new small ones."""
