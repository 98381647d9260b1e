"""Recurrent-depth decoders for transformers. Importing this registers them with the Auto classes."""

import sys

import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .cache_recurrent import RecurrentDepthCache
from .configuration_recurrent import RecurrentDepthConfig
from .modeling_recurrent import (
    RecurrentDepthForCausalLM,
    RecurrentDepthForQuestionAnswering,
    RecurrentDepthForSequenceClassification,
    RecurrentDepthForTokenClassification,
    RecurrentDepthModel,
)
from .static_cache_recurrent import RecurrentDepthStaticCache


_AUTO_CLASSES = {
    AutoModel: RecurrentDepthModel,
    AutoModelForCausalLM: RecurrentDepthForCausalLM,
    AutoModelForQuestionAnswering: RecurrentDepthForQuestionAnswering,
    AutoModelForSequenceClassification: RecurrentDepthForSequenceClassification,
    AutoModelForTokenClassification: RecurrentDepthForTokenClassification,
}

AutoConfig.register(RecurrentDepthConfig.model_type, RecurrentDepthConfig)
RecurrentDepthConfig.register_for_auto_class()
for _auto_class, _model_class in _AUTO_CLASSES.items():
    _auto_class.register(RecurrentDepthConfig, _model_class)
    # Saves the code with the weights, so that users without this package can load the model.
    _model_class.register_for_auto_class(_auto_class.__name__)
    # `transformers serve` and pipelines look a class up by its name in `transformers`. The library replaces that
    # module when a model is first imported, and code that imported it earlier still holds the old one.
    for _module in (transformers, sys.modules["transformers"]):
        setattr(_module, _model_class.__name__, _model_class)

__all__ = [
    "RecurrentDepthCache",
    "RecurrentDepthConfig",
    "RecurrentDepthForCausalLM",
    "RecurrentDepthForQuestionAnswering",
    "RecurrentDepthForSequenceClassification",
    "RecurrentDepthForTokenClassification",
    "RecurrentDepthModel",
    "RecurrentDepthStaticCache",
]
