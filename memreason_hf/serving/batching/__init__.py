"""Texts of many requests at once, batched by depth: rows at different recurrences share one forward of the core."""

from .batcher import BatcherStats, DepthBatcher
from .requests import GenerationRequest, QueueFull, RequestOutput, TokenOutput


__all__ = ["BatcherStats", "DepthBatcher", "GenerationRequest", "QueueFull", "RequestOutput", "TokenOutput"]
