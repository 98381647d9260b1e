"""Where models come from: a folder, the Hub, an adapter on its base, or new small ones."""
