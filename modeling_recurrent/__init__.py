"""Recurrent-depth decoders for transformers. Importing this registers them with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .cache_recurrent import RecurrentDepthCache
from .configuration_recurrent import RecurrentDepthConfig
from .modeling_recurrent import RecurrentDepthForCausalLM, RecurrentDepthModel
from .static_cache_recurrent import RecurrentDepthStaticCache


AutoConfig.register(RecurrentDepthConfig.model_type, RecurrentDepthConfig)
AutoModel.register(RecurrentDepthConfig, RecurrentDepthModel)
AutoModelForCausalLM.register(RecurrentDepthConfig, RecurrentDepthForCausalLM)

# The files travel with the weights, for users who never installed this package.
RecurrentDepthConfig.register_for_auto_class()
RecurrentDepthModel.register_for_auto_class("AutoModel")
RecurrentDepthForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = [
    "RecurrentDepthCache",
    "RecurrentDepthConfig",
    "RecurrentDepthForCausalLM",
    "RecurrentDepthModel",
    "RecurrentDepthStaticCache",
]
