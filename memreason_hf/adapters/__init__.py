"""PEFT modes for models that write steps: adapted layers, rows of new tokens, saving, and the base of an adapter."""
