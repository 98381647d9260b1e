"""Figures, pages and tables of depth and attention."""

from memreason_hf.analysis.depth_figures import accuracy_figure, margin_figure, save_figure


__all__ = ["accuracy_figure", "margin_figure", "save_figure"]
