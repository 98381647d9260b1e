"""Configuration of recurrent-depth decoders: which blocks, how they are looped, when the loop stops."""

import difflib
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters
from transformers.utils import logging

from .halting_recurrent import HALTING_CRITERIA, criterion_parameters


logger = logging.get_logger(__name__)

# Keys that are no fields of the config and yet belong to it: the library's own, and what other parts note there.
_LIBRARY_KEYS = {
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "partial_rotary_factor",
    "per_layer_config",
    "quantization_config",
    "rope_scaling",
    "rope_theta",
    "step_attention",
    "step_scheme",
    "tie_last_hidden_states",
    "torch_dtype",
}

# Where AutoClasses find the code that `save_pretrained` puts beside the weights.
_AUTO_MAP = {
    "AutoConfig": "configuration_recurrent.RecurrentDepthConfig",
    "AutoModel": "modeling_recurrent.RecurrentDepthModel",
    "AutoModelForCausalLM": "modeling_recurrent.RecurrentDepthForCausalLM",
}


@strict
class RecurrentDepthConfig(PreTrainedConfig):
    r"""
    Configuration of a decoder whose core layers are applied again and again.

    The layers run in the order prelude -> (recurrent layers) x number of recurrences -> coda. Every field of depth or
    halting can also be given by the same name to `forward` and `generate`; the value of a call wins.

    Args:
        vocab_size (`int`): Rows of the embedding; may exceed the tokenizer's length.
        hidden_size (`int`): Width of the state.
        intermediate_size (`int`, *optional*): Width of the MLP; four times `hidden_size` if not given.
        num_prelude_layers, num_recurrent_layers, num_coda_layers (`int`):
            Layers before, in and after the loop. `num_hidden_layers` is their sum and read-only.
        num_attention_heads, num_key_value_heads, head_dim (`int`, the last two *optional*): As in Llama.
        hidden_act (`str`), gated_mlp (`bool`): `gelu_new` and not gated is GPT-2's MLP, `silu` and gated is Llama's.
        norm_type (`"layernorm"` or `"rmsnorm"`), norm_eps (`float`): Norm of the blocks and of the last state.
        attention_bias, attention_output_bias, mlp_bias (`bool`, the second *optional*):
            Biases of query, key and value; of the output projection (as `attention_bias` if not given; Qwen2 has
            the first without the second); of the MLP.
        attention_dropout, residual_dropout, embedding_dropout (`float`): Dropout probabilities in training.
        position_embedding_type (`"learned"`, `"sinusoidal"`, `"none"`, `"rope"`), max_position_embeddings (`int`),
            rope_parameters (`dict`, *optional*): Positions; the last as in Llama.
        sliding_window (`int`, *optional*): Attention of the looped layers sees so many tokens, itself included.
        initializer_range (`float`): Standard deviation of the initial weights.
        residual_init_scale (`float`, *optional*):
            Factor on the initial weights of the two output projections of each looped block; 0 starts the block as
            the identity, `None` keeps the usual initialisation.
        use_cache (`bool`), cache_recurrences (`"all"` or `"last"`): Whether keys and values are kept, and of which
            recurrences; see `RecurrentDepthCache`.
        num_recurrences (`int`): Recurrences when nothing else is asked for, and the mean in training.
        input_injection (`"none"`, `"add"`, `"concat"`):
            What happens before every recurrence after the first: nothing; state + embedding; a linear adapter over
            both, which starts as the sum. Where the initial state is not the embedding, the first recurrence too.
        state_init (`"embedding"`, `"zeros"`, `"normal"`), state_init_std (`float`), state_seed (`int`):
            The state before the first recurrence. Normal noise is a function of (seed, position) alone, so that a row
            does not depend on the others of its batch.
        state_norm (`"none"`, `"layernorm"`, `"rmsnorm"`): Applied to the state between recurrences.
        recurrence_sampling (`"fixed"`, `"uniform"`, `"poisson"`, `"lognormal_poisson"`), recurrence_min,
            recurrence_max (`int`, *optional*): Distribution of the number of recurrences of a training step around
            the mean `num_recurrences` (`uniform`: over min..max), clipped to min..max.
        backprop_recurrences (`int`, *optional*): Gradients flow through the last so many recurrences only.
        halting_criterion (`str`, *optional*): Name of a criterion of `halting_recurrent.py`; `None`: fixed depth.
        halting_granularity (`"token"` or `"sequence"`): Who halts: every token, or a row at its last real token.
        min_recurrences, max_recurrences (`int`): Bounds of what a criterion may decide.
        kl_threshold, entropy_threshold (nats), confidence_threshold (probability), state_difference_threshold,
            acceleration_threshold (relative), argmax_patience (recurrences): Parameters of the criteria.

    Raises:
        `StrictDataclassError`: a field of the wrong type, or fields that contradict each other.
        `TypeError`: a name that is no field.
    """

    model_type = "recurrent_depth"
    keys_to_ignore_at_inference = ["past_key_values", "num_recurrences"]
    base_model_fsdp_plan = {
        "embed_tokens": "free_full_weight",
        "prelude_layers.*": "free_full_weight",
        "recurrent_layers.*": "free_full_weight",
        "coda_layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }
    base_model_tp_plan = {
        f"{stack}.*.{module}": plan
        for stack in ("prelude_layers", "recurrent_layers", "coda_layers")
        for module, plan in {
            "self_attn.q_proj": "colwise",
            "self_attn.k_proj": "colwise",
            "self_attn.v_proj": "colwise",
            "self_attn.o_proj": "rowwise",
            "mlp.gate_proj": "colwise",
            "mlp.up_proj": "colwise",
            "mlp.down_proj": "rowwise",
        }.items()
    }

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int | None = None
    num_prelude_layers: int = 0
    num_recurrent_layers: int = 4
    num_coda_layers: int = 0
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    gated_mlp: bool = True
    norm_type: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_eps: float = 1e-6
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    mlp_bias: bool = False
    attention_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    position_embedding_type: Literal["learned", "sinusoidal", "none", "rope"] = "rope"
    max_position_embeddings: int = 2048
    rope_parameters: RopeParameters | dict | None = None
    sliding_window: int | None = None
    initializer_range: float = 0.02
    residual_init_scale: float | int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
    cache_recurrences: Literal["all", "last"] = "all"
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    num_recurrences: int = 4
    input_injection: Literal["none", "add", "concat"] = "none"
    state_init: Literal["embedding", "zeros", "normal"] = "embedding"
    state_init_std: float | int = 1.0
    state_seed: int = 0
    state_norm: Literal["none", "layernorm", "rmsnorm"] = "none"
    recurrence_sampling: Literal["fixed", "uniform", "poisson", "lognormal_poisson"] = "fixed"
    recurrence_min: int | None = None
    recurrence_max: int | None = None
    backprop_recurrences: int | None = None

    halting_criterion: str | None = None
    halting_granularity: Literal["sequence", "token"] = "token"
    min_recurrences: int = 1
    max_recurrences: int = 16
    kl_threshold: float | int = 0.01
    entropy_threshold: float | int = 3.0
    confidence_threshold: float | int = 0.9
    state_difference_threshold: float | int = 0.05
    acceleration_threshold: float | int = 0.05
    argmax_patience: int = 3

    def __post_init__(self, **kwargs):
        if "num_hidden_layers" in kwargs:
            raise TypeError(
                f"num_hidden_layers={kwargs['num_hidden_layers']} cannot be set: it is the sum of num_prelude_layers, "
                "num_recurrent_layers and num_coda_layers. Give these."
            )
        for key in filter(self._is_unknown, kwargs):
            close = difflib.get_close_matches(key, self.__dataclass_fields__, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{key}={kwargs[key]!r}: RecurrentDepthConfig has no field {key!r}.{hint}")
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            # Rounded down here; validate_architecture reports a width that the heads do not divide.
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        if self.halting_criterion == "none":  # as calls spell it
            self.halting_criterion = None
        if self.attention_output_bias is None:
            self.attention_output_bias = self.attention_bias
        super().__post_init__(**{"auto_map": dict(_AUTO_MAP), **kwargs})

    @classmethod
    def _is_unknown(cls, key):
        library_key = key.startswith("_") or key in _LIBRARY_KEYS or hasattr(PreTrainedConfig, key)
        return key not in cls.__dataclass_fields__ and not library_key

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        # A later release may write keys that this one does not know: a file keeps them, a call may not invent them.
        unknown = {key: value for key, value in config_dict.items() if cls._is_unknown(key)}
        if unknown:
            logger.warning(f"config.json holds keys that RecurrentDepthConfig does not know: {', '.join(unknown)}.")
        result = super().from_dict({k: v for k, v in config_dict.items() if k not in unknown}, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        for key, value in unknown.items():
            setattr(config, key, value)
        return result

    @property
    def num_hidden_layers(self) -> int:
        """Layers with weights of their own: `num_prelude_layers + num_recurrent_layers + num_coda_layers`."""
        return self.num_prelude_layers + self.num_recurrent_layers + self.num_coda_layers

    @classmethod
    def gpt2_style(cls, **kwargs) -> "RecurrentDepthConfig":
        """GPT-2 blocks: LayerNorm, `gelu_new` MLP, biases, learned positions, tied embeddings."""
        return cls(
            **{
                "norm_type": "layernorm",
                "norm_eps": 1e-5,
                "gated_mlp": False,
                "hidden_act": "gelu_new",
                "attention_bias": True,
                "mlp_bias": True,
                "position_embedding_type": "learned",
                "max_position_embeddings": 1024,
                "tie_word_embeddings": True,
                **kwargs,
            }
        )

    @classmethod
    def llama_style(cls, **kwargs) -> "RecurrentDepthConfig":
        """Llama blocks: RMSNorm, gated `silu` MLP, no biases, RoPE, untied embeddings."""
        return cls(
            **{
                "norm_type": "rmsnorm",
                "norm_eps": 1e-6,
                "gated_mlp": True,
                "hidden_act": "silu",
                "attention_bias": False,
                "mlp_bias": False,
                "position_embedding_type": "rope",
                "max_position_embeddings": 2048,
                "tie_word_embeddings": False,
                **kwargs,
            }
        )

    def validate_architecture(self):
        """Checks that run at construction, at save and on `validate()`; one message for each broken rule."""
        self._at_least(1, "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "head_dim")
        self._at_least(1, "num_key_value_heads", "max_position_embeddings", "num_recurrent_layers")
        self._at_least(0, "num_prelude_layers", "num_coda_layers")
        if (
            self.num_attention_heads * self.head_dim != self.hidden_size
            and self.hidden_size % self.num_attention_heads
        ):
            raise ValueError(
                f"hidden_size={self.hidden_size} is no multiple of num_attention_heads={self.num_attention_heads}: "
                "choose a multiple, or give head_dim."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is no multiple of "
                f"num_key_value_heads={self.num_key_value_heads}: every key head serves as many query heads."
            )
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd: RoPE rotates pairs, choose an even one.")
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size={self.hidden_size} is odd: sinusoidal positions come in pairs.")
        if self.sliding_window is not None:
            self._at_least(1, "sliding_window")
        for name in ("attention_dropout", "residual_dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is no probability below 1.")

    def validate_recurrence(self):
        """Checks of the fields that say how many recurrences run."""
        self._at_least(1, "num_recurrences")
        for name in ("recurrence_min", "recurrence_max", "backprop_recurrences"):
            if getattr(self, name) is not None:
                self._at_least(1, name)
        low, high = self.recurrence_min, self.recurrence_max
        if low is not None and high is not None and low > high:
            raise ValueError(f"recurrence_min={low} is above recurrence_max={high}.")
        if self.recurrence_sampling == "uniform" and (low is None or high is None):
            raise ValueError(
                f"recurrence_sampling='uniform' needs recurrence_min and recurrence_max, got {low} and {high}."
            )
        if self.state_init != "embedding" and self.input_injection == "none":
            raise ValueError(
                f"state_init={self.state_init!r} with input_injection='none': the input would never reach the state. "
                "Choose input_injection='add' or 'concat', or state_init='embedding'."
            )

    def validate_halting(self):
        """Checks of the fields that say when the loop stops."""
        self._at_least(1, "min_recurrences", "max_recurrences", "argmax_patience")
        if self.min_recurrences > self.max_recurrences:
            raise ValueError(
                f"min_recurrences={self.min_recurrences} is above max_recurrences={self.max_recurrences}."
            )
        if self.halting_criterion is not None and self.halting_criterion not in HALTING_CRITERIA:
            close = difflib.get_close_matches(self.halting_criterion, HALTING_CRITERIA, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"halting_criterion={self.halting_criterion!r} is unknown. Known: {', '.join(HALTING_CRITERIA)}.{hint}"
            )
        for name in criterion_parameters():
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive, or no recurrence ever passes it.")

    def _at_least(self, least, *names):
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}.")


__all__ = ["RecurrentDepthConfig"]
