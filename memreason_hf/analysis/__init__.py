"""Figures of what depth does."""

from memreason_hf.analysis.depth_figures import accuracy_figure, margin_figure, save_figure


__all__ = ["accuracy_figure", "margin_figure", "save_figure"]
