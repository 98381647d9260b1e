"""Texts for language modelling: files or data sets, in memory or streamed, tokenised and packed into rows."""
