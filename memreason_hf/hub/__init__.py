"""Artifacts on the Hub: what is published, the cards, and the inspection of what must not leave."""
