"""The test bed: four small models on one world whose truth is known, to find where errors come from."""
