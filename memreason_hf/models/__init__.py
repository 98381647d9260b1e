"""Models from a folder, the Hub, an adapter, a pretrained decoder or a published loop, and new small ones."""

from memreason_hf.models.conversion.decoder import convert_decoder, unroll_decoder
from memreason_hf.models.published import convert_published


__all__ = ["convert_decoder", "convert_published", "unroll_decoder"]
