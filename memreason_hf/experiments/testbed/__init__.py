"""Four small models on one world whose truth is known: where do errors come from?"""
