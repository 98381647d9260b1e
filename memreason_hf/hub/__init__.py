"""To the Hub and back: what a folder holds, its card, what must not leave, and the upload."""
