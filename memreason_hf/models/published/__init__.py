"""
The published loops: reading Huginn, the Retrofit models, Ouro and the checkpoints of the study as our own models.

No code of a checkpoint runs, and no file is unpickled beyond tensors and numbers.
"""

from memreason_hf.models.published.convert import convert_published, detect, read_published
from memreason_hf.models.published.reading import PublishedLoop


__all__ = ["PublishedLoop", "convert_published", "detect", "read_published"]
