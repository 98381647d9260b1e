"""Figures of what depth does."""

from .depth_figures import accuracy_figure, margin_figure, save_figure


__all__ = ["accuracy_figure", "margin_figure", "save_figure"]
