"""Compositions of two facts: the data set of the systematicity study."""
