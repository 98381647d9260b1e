"""Texts of many requests at once, batched by depth: rows at different recurrences share one forward of the core."""

from .batcher import BatcherStats, DepthBatcher
from .requests import CacheTooSmall, GenerationRequest, QueueFull, RequestOutput, TokenOutput


__all__ = [
    "BatcherStats",
    "CacheTooSmall",
    "DepthBatcher",
    "GenerationRequest",
    "QueueFull",
    "RequestOutput",
    "TokenOutput",
]
