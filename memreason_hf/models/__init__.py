"""Models from a folder, the Hub, an adapter or a pretrained decoder, and new small ones."""

from memreason_hf.models.conversion.decoder import convert_decoder, unroll_decoder


__all__ = ["convert_decoder", "unroll_decoder"]
