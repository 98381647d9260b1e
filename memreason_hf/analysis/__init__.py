"""Figures, pages and tables of depth and attention."""

from memreason_hf.analysis.depth_figures import accuracy_figure, margin_figure, save_figure
from memreason_hf.analysis.perplexity_figures import perplexity_figure


__all__ = ["accuracy_figure", "margin_figure", "perplexity_figure", "save_figure"]
