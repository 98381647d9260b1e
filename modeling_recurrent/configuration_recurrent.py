"""Configuration of recurrent-depth decoders: blocks, loop and halting."""

import difflib
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters
from transformers.utils import logging

from .families_recurrent import LOGIT_FIELDS, described_fields, layer_types, make_block_config, strip_block_config
from .fields_recurrent import (
    activation_field,
    check_library_fields,
    check_rope,
    check_token_ids,
    layers_field,
    looped_layers_field,
    not_negative_field,
    number_field,
    positions_field,
    positive_field,
    probability_field,
    recurrences_field,
    seed_field,
    share_field,
    units_field,
)
from .halting_recurrent import HALTING_CRITERIA
from .parallel_recurrent import tensor_parallel_plan
from .versions_recurrent import VERSION_KEY, add_version, drop_layer_types, remember_version, take_version


logger = logging.get_logger(__name__)

# Keys of the library that are neither fields nor attributes of its config class.
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
    "tie_last_hidden_states",
    "torch_dtype",
    VERSION_KEY,
}

# Fields that only our own blocks read.
_OWN_BLOCK_FIELDS = (
    "attention_bias",
    "attention_dropout",
    "attention_output_bias",
    "block_norm",
    "embedding_dropout",
    "embedding_scale",
    "gated_mlp",
    "hidden_act",
    "mlp_bias",
    "norm_type",
    "residual_dropout",
    "residual_init_scale",
    "rope_parameters",
)

# Where the Auto classes find the code that `save_pretrained` saves with the weights.
_AUTO_MAP = {
    "AutoConfig": "configuration_recurrent.RecurrentDepthConfig",
    "AutoModel": "modeling_recurrent.RecurrentDepthModel",
    "AutoModelForCausalLM": "modeling_recurrent.RecurrentDepthForCausalLM",
    "AutoModelForSequenceClassification": "modeling_recurrent.RecurrentDepthForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_recurrent.RecurrentDepthForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_recurrent.RecurrentDepthForQuestionAnswering",
}


@strict
class RecurrentDepthConfig(PreTrainedConfig):
    r"""
    Configuration of a [`RecurrentDepthModel`]: a decoder whose core layers are applied again and again.

    The layers run in this order: the prelude, the recurrent layers `num_recurrences` times, the coda. The fields of
    depth and halting are also arguments of `forward` and `generate`; the value of a call takes precedence.

    Args:
        vocab_size (`int`, defaults to 32000):
            Number of rows of the embedding. It may exceed the length of the tokenizer.
        hidden_size (`int`, defaults to 768):
            Width of the state.
        intermediate_size (`int`, *optional*, defaults to `4 * hidden_size`):
            Width of the MLP.
        num_prelude_layers, num_recurrent_layers, num_coda_layers (`int`, default to 0, 4 and 0):
            Number of layers before, in and after the loop.
        num_attention_heads, num_key_value_heads, head_dim (`int`, the last two *optional*):
            As in Llama.
        block_model_type (`str`, *optional*), block_config (`dict`, *optional*):
            The `model_type` of a decoder family of transformers whose own layers run in place of ours, and the fields
            of its config, with one entry for each physical layer in lists such as `layer_types`. The fields of this
            config that describe blocks (sizes, positions, `sliding_window`) then follow from them.
        hidden_act (`str`, defaults to `"silu"`), gated_mlp (`bool`, defaults to `True`):
            GPT-2's MLP is not gated and uses `"gelu_new"`; Llama's is gated and uses `"silu"`.
        norm_type (`"layernorm"` or `"rmsnorm"`, defaults to `"rmsnorm"`), norm_eps (`float`, defaults to 1e-6):
            The norm of the blocks and of the last state.
        block_norm (`"pre"`, `"sandwich"` or `"residual"`, defaults to `"pre"`):
            The norms of a block: one before each sublayer; in addition one on the output of each sublayer, as in Ouro
            and Gemma 2; or in addition one on the sum of that output and the input, as in Huginn.
        embedding_scale (`float`, defaults to 1.0):
            Factor on the token embeddings.
        attention_bias, attention_output_bias, mlp_bias (`bool`, the second *optional*):
            Whether the query, key and value projections, the output projection and the MLP have biases.
            `attention_output_bias` follows `attention_bias` where it is not given; Qwen2 has the first only.
        attention_dropout, residual_dropout, embedding_dropout (`float`, default to 0.0):
            Dropout probabilities in training.
        position_embedding_type (`"learned"`, `"sinusoidal"`, `"none"` or `"rope"`, defaults to `"rope"`):
            The type of the position embeddings.
        max_position_embeddings (`int`, defaults to 2048):
            Number of learned positions, or the context length that the RoPE parameters assume.
        rope_parameters (`dict`, *optional*):
            As in Llama, `partial_rotary_factor` included. All layers share one set of parameters.
        sliding_window (`int`, *optional*):
            Number of tokens that the looped layers attend to, including the current one. Prelude and coda attend to
            all tokens.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of the initial weights.
        residual_init_scale (`float`, *optional*):
            Factor on the initial weights of the two output projections of each looped block. With 0 a block starts as
            the identity; `None` keeps the usual initialisation.
        use_cache (`bool`, defaults to `True`), cache_recurrences (`"all"` or `"last"`, defaults to `"all"`):
            Whether keys and values are kept, and of which recurrences; see [`RecurrentDepthCache`].
        num_recurrences (`int`, defaults to 4):
            Number of recurrences of a call that does not set it, and the mean number in training.
        input_injection (`"none"`, `"add"`, `"gate"` or `"concat"`, defaults to `"none"`), injection_gate_init
            (`float`, defaults to 0.0):
            What happens to the state before every recurrence after the first: nothing; the embedding is added; a gate
            for each channel mixes them, `embedding + gate * (state - embedding)`; a linear adapter, which starts as
            the sum, maps state and embedding to a new state. Gates start at `injection_gate_init`. With 0 every
            recurrence repeats the first until the gates are trained; with 1 the state goes on unchanged. Where the
            initial state is not the embedding, the same happens before the first recurrence.
        state_init (`"embedding"`, `"zeros"`, `"normal"` or `"truncated_normal"`, defaults to `"embedding"`),
            state_init_std (`float`, defaults to 1.0), state_seed (`int`, defaults to 0):
            The state before the first recurrence. Normal noise depends on the seed and the position of a token only,
            never on the other rows of its batch; truncated, it stays within three times `state_init_std`.
        state_norm (`"none"`, `"layernorm"`, `"rmsnorm"` or `"last"`, defaults to `"none"`):
            The norm applied to the state between recurrences: one with its own weights, or the last norm of the model.
        coda_norm (`bool`, defaults to `False`):
            Whether the last norm of the model is applied to the state before the coda, too.
        exit_gate (`bool`, defaults to `False`):
            Whether the model has a linear layer on the normed state for the criterion `"exit_gate"`.
        recurrence_lora_rank (`int`, *optional*), recurrence_lora_count (`int`, defaults to 7), recurrence_lora_alpha
            (`float`, *optional*, defaults to the rank):
            Low-rank updates of the linear layers in the loop, of this rank and times `recurrence_lora_alpha /
            recurrence_lora_rank`. The first recurrence has none, each of the next `recurrence_lora_count` has its own,
            and deeper ones share the last. They start without effect.
        recurrence_sampling (`"fixed"`, `"uniform"`, `"poisson"` or `"lognormal_poisson"`, defaults to `"fixed"`):
            Distribution of the number of recurrences of a training step, with `num_recurrences` as its mean.
            `"uniform"` draws from `recurrence_min` to `recurrence_max`.
        recurrence_min, recurrence_max (`int`, *optional*):
            The drawn number is clipped to this range.
        recurrence_seed (`int`, defaults to 0):
            Seed of the draws where several processes train together. A draw then depends only on this seed and on
            the number of training forward passes so far, so that all processes draw the same depth. A single process
            draws from torch's generator. The trainers of `memreason_hf` set the depth of a step themselves.
        backprop_recurrences (`int`, *optional*):
            How many of the last recurrences of a row gradients flow through. `None`: all of them. Where a halting
            criterion decides, the last recurrence is not known in advance, so that gradients flow through all.
        recurrence_loss (`"last"`, `"uniform"` or `"geometric"`, defaults to `"last"`), recurrence_loss_decay (`float`,
            defaults to 0.5):
            Which recurrences have a loss in training: the last one, or all of them with weights that sum to 1,
            uniform or proportional to `recurrence_loss_decay ** (R - t)` at recurrence t of R. A trainer that
            computes the loss itself, such as TRL's SFTTrainer, trains the last recurrence only; a warning says so.
        recurrence_gradients (`"shared"` or `"separate"`, defaults to `"shared"`):
            Which weights learn from the losses of recurrences after the first: all, or only those that belong to
            these recurrences (gate or adapter, norm of the state, low-rank updates). All other weights then learn
            from the loss after the first recurrence alone, as a model without a loop does.
        halting_criterion (`str`, *optional*):
            Name of a criterion of `halting_recurrent.py`. `None`: the depth is fixed.
        halting_granularity (`"token"` or `"sequence"`, defaults to `"token"`):
            Whether each token halts on its own, or a row as a whole, as decided at its last token.
        min_recurrences, max_recurrences (`int`, default to 1 and 16):
            The first recurrence at which a row or token may halt, and the one at which it halts at the latest.
        kl_threshold, entropy_threshold (`float`, default to 0.01 and 3.0): In nats.
        confidence_threshold, exit_gate_threshold (`float`, default to 0.9): Probabilities.
        margin_threshold (`float`, defaults to 5.0): A difference of logits.
        state_difference_threshold, acceleration_threshold (`float`, default to 0.05): Relative to the state's norm.
        argmax_patience (`int`, defaults to 3): In recurrences.

    Raises:
        `StrictDataclassError`: A field has the wrong type or value, or two fields contradict each other.
        `TypeError`: A name is not a field.

    Example:

    ```python
    >>> from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM

    >>> config = RecurrentDepthConfig.llama_style(vocab_size=1000, hidden_size=64, num_attention_heads=4)
    >>> model = RecurrentDepthForCausalLM(config)
    >>> model.config.num_recurrences
    4
    ```
    """

    model_type = "recurrent_depth"
    keys_to_ignore_at_inference = ["past_key_values", "num_recurrences"]
    base_model_fsdp_plan = {
        "embed_tokens": "free_full_weight",
        "layers.*": "free_full_weight",
        "norm": "keep_full_weight",
    }
    # Keys that other packages keep in a config and that do not change the model; see `register_key`.
    registered_keys: ClassVar[set[str]] = {"halting_calibration"}

    vocab_size: int = units_field(default=32000)
    hidden_size: int = units_field(default=768)
    intermediate_size: int | None = units_field(default=None)
    num_prelude_layers: int = layers_field(default=0)
    num_recurrent_layers: int = looped_layers_field(default=4)
    num_coda_layers: int = layers_field(default=0)
    block_model_type: str | None = None
    block_config: dict | None = None
    num_attention_heads: int = units_field(default=12)
    num_key_value_heads: int | None = units_field(default=None)
    head_dim: int | None = units_field(default=None)
    hidden_act: str = activation_field(default="silu")
    gated_mlp: bool = True
    norm_type: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_eps: float = positive_field(default=1e-6)
    block_norm: Literal["pre", "sandwich", "residual"] = "pre"
    embedding_scale: float | int = positive_field(default=1.0)
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    mlp_bias: bool = False
    attention_dropout: float | int = share_field(default=0.0)
    residual_dropout: float | int = share_field(default=0.0)
    embedding_dropout: float | int = share_field(default=0.0)
    position_embedding_type: Literal["learned", "sinusoidal", "none", "rope"] = "rope"
    max_position_embeddings: int = positions_field(default=2048)
    rope_parameters: RopeParameters | dict | None = None
    sliding_window: int | None = positions_field(default=None)
    initializer_range: float = not_negative_field(default=0.02)
    residual_init_scale: float | int | None = number_field(default=None)
    tie_word_embeddings: bool = False
    use_cache: bool = True
    cache_recurrences: Literal["all", "last"] = "all"
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    num_recurrences: int = recurrences_field(default=4)
    input_injection: Literal["none", "add", "gate", "concat"] = "none"
    injection_gate_init: float | int = number_field(default=0.0)
    state_init: Literal["embedding", "zeros", "normal", "truncated_normal"] = "embedding"
    state_init_std: float | int = not_negative_field(default=1.0)
    state_seed: int = seed_field(default=0)
    state_norm: Literal["none", "layernorm", "rmsnorm", "last"] = "none"
    coda_norm: bool = False
    exit_gate: bool = False
    recurrence_lora_rank: int | None = units_field(default=None)
    recurrence_lora_count: int = recurrences_field(default=7)
    recurrence_lora_alpha: float | int | None = positive_field(default=None)
    recurrence_sampling: Literal["fixed", "uniform", "poisson", "lognormal_poisson"] = "fixed"
    recurrence_min: int | None = recurrences_field(default=None)
    recurrence_max: int | None = recurrences_field(default=None)
    recurrence_seed: int = seed_field(default=0)
    backprop_recurrences: int | None = recurrences_field(default=None)
    recurrence_gradients: Literal["shared", "separate"] = "shared"
    recurrence_loss: Literal["last", "uniform", "geometric"] = "last"
    recurrence_loss_decay: float | int = positive_field(default=0.5)

    halting_criterion: str | None = None
    halting_granularity: Literal["sequence", "token"] = "token"
    min_recurrences: int = recurrences_field(default=1)
    max_recurrences: int = recurrences_field(default=16)
    kl_threshold: float | int = positive_field(default=0.01)
    entropy_threshold: float | int = positive_field(default=3.0)
    confidence_threshold: float | int = probability_field(default=0.9)
    margin_threshold: float | int = positive_field(default=5.0)
    exit_gate_threshold: float | int = probability_field(default=0.9)
    state_difference_threshold: float | int = positive_field(default=0.05)
    acceleration_threshold: float | int = positive_field(default=0.05)
    argmax_patience: int = recurrences_field(default=3)

    def __post_init__(self, **kwargs):
        if "num_hidden_layers" in kwargs:
            raise TypeError(
                f"num_hidden_layers={kwargs['num_hidden_layers']} cannot be set: it follows from num_prelude_layers, "
                "num_recurrent_layers, num_coda_layers and num_recurrences. Set these."
            )
        for key in filter(self._is_unknown, kwargs):
            close = difflib.get_close_matches(key, self.__dataclass_fields__, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{key}={kwargs[key]!r}: RecurrentDepthConfig has no field {key!r}.{hint}")
        check_library_fields({**kwargs, "dtype": self.dtype, "id2label": self.id2label})
        if self.block_model_type is not None:
            self._refuse_rope_keys(kwargs)
            self._describe_blocks()
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            # Rounded down here; `validate_architecture` refuses a width that is not a multiple of the heads.
            self.head_dim = max(self.hidden_size // self.num_attention_heads, 1)
        if self.attention_output_bias is None and self.block_model_type is None:
            self.attention_output_bias = self.attention_bias
        self.base_model_tp_plan = tensor_parallel_plan(self)
        kwargs.pop(VERSION_KEY, None)
        super().__post_init__(**{"auto_map": dict(_AUTO_MAP), **kwargs})
        if self.block_model_type is not None:
            # The library fills in a default. Those of the layers are in block_config.
            self.rope_parameters = None

    def _describe_blocks(self):
        """Fills the fields that describe blocks from the config of the family."""
        self._refuse_block_fields()
        for name, value in described_fields(make_block_config(self)).items():
            given, default = getattr(self, name), self.__dataclass_fields__[name].default
            if given not in (value, default):
                raise ValueError(
                    f"{name}={given!r} contradicts block_config, from which {value!r} follows. Change "
                    f"block_config, or leave {name} out."
                )
            setattr(self, name, value)

    def _refuse_rope_keys(self, given):
        # The library would merge them into rope_parameters, which belong to our own blocks.
        for name in ("rope_theta", "rope_scaling", "partial_rotary_factor"):
            if given.get(name) is not None:
                raise ValueError(
                    f"{name}={given[name]!r} is for our own blocks, but block_model_type="
                    f"{self.block_model_type!r} runs the layers of a family. Set rope_parameters in block_config."
                )

    def _refuse_block_fields(self):
        for name in _OWN_BLOCK_FIELDS:
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is for our own blocks, but block_model_type="
                    f"{self.block_model_type!r} runs the layers of a family. Set it in block_config, in the family's "
                    "own terms."
                )

    def __setattr__(self, name, value):
        # Calls spell it "none".
        super().__setattr__(name, None if name == "halting_criterion" and value == "none" else value)

    def __getattr__(self, name):
        # TRL and vLLM compute logits themselves, and vLLM attention. They read from the config how a family scales and
        # bounds them.
        if name in LOGIT_FIELDS and self.__dict__.get("block_model_type") is not None:
            return getattr(self.make_block_config(), name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def to_dict(self):
        values = super().to_dict()
        if self.block_model_type is not None:
            # Their defaults would say something else than block_config does.
            values = {name: value for name, value in values.items() if name not in _OWN_BLOCK_FIELDS}
        return add_version(values)

    @classmethod
    def register_key(cls, key: str) -> None:
        """
        Declares that configs may hold `key`, which belongs to another package and does not change the model.

        Such a key is accepted silently in files and calls. Any other unknown key causes a warning in a file and an
        error in a call.
        """
        cls.registered_keys.add(key)

    @classmethod
    def _is_unknown(cls, key):
        known = key in cls.__dataclass_fields__ or key in _LIBRARY_KEYS or key in cls.registered_keys
        return not known and not key.startswith("_") and not hasattr(PreTrainedConfig, key)

    @classmethod
    def refuse_misspelt(cls, kwargs: dict) -> None:
        """Raises a `TypeError` for a keyword argument of `from_pretrained` that looks like a misspelt field."""
        # The library's own argument for weights is spelled much like `state_init`.
        for name in filter(cls._is_unknown, kwargs.keys() - {"state_dict"}):
            if close := difflib.get_close_matches(name, cls.__dataclass_fields__, n=1, cutoff=0.8):
                raise TypeError(
                    f"{name}={kwargs[name]!r}: RecurrentDepthConfig has no field {name!r}. Did you mean {close[0]!r}?"
                )

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"The checkpoint holds a model of type {model_type!r}, which cannot be loaded as a "
                f"{cls.model_type!r} model. Load it with AutoModelForCausalLM."
            )
        config_dict, version = take_version(drop_layer_types(config_dict))
        # A later release may write keys that this one does not know, so unknown keys are kept in a file. In a call
        # they are an error.
        unknown = {key: value for key, value in config_dict.items() if cls._is_unknown(key)}
        if unknown:
            logger.warning(
                f"config.json holds keys that this release of RecurrentDepthConfig does not know and keeps as they "
                f"are: {', '.join(unknown)}."
            )
        cls.refuse_misspelt(kwargs)
        result = super().from_dict({k: v for k, v in config_dict.items() if k not in unknown}, **kwargs)
        config = result[0] if isinstance(result, tuple) else result
        for key, value in unknown.items():
            setattr(config, key, value)
        remember_version(config, version)
        return result

    @property
    def num_physical_layers(self) -> int:
        """Number of layers with weights of their own: prelude, recurrent and coda layers, each counted once."""
        return self.num_prelude_layers + self.num_recurrent_layers + self.num_coda_layers

    @property
    def physical_layer_types(self) -> list[str]:
        """`"full_attention"` or `"sliding_attention"` for each physical layer."""
        if self.block_model_type is not None:
            return layer_types(self.make_block_config())
        looped = "full_attention" if self.sliding_window is None else "sliding_attention"
        kinds = {"prelude": "full_attention", "recurrent": looped, "coda": "full_attention"}
        return [kind for name, kind in kinds.items() for _ in range(getattr(self, f"num_{name}_layers"))]

    def spread_over_slots(self, values: list, num_recurrences: int) -> list:
        """The entries of `values`, one for each physical layer, for each key-value slot of a token at fixed depth."""
        start = self.num_prelude_layers
        end = start + self.num_recurrent_layers
        return [*values[:start], *values[start:end] * num_recurrences, *values[end:]]

    @property
    def layer_types(self) -> list[str]:
        """
        `"full_attention"` or `"sliding_attention"` for each of the `num_hidden_layers` slots, as engines and the
        caches of the library read it. It is never stored.
        """
        return self.spread_over_slots(self.physical_layer_types, self.num_recurrences)

    def make_block_config(self) -> PreTrainedConfig:
        """The config of the family whose layers run, for all physical layers."""
        return make_block_config(self)

    def set_block_config(self, config: PreTrainedConfig) -> None:
        """Takes the layers from a family's config, whose lists have one entry for each physical layer."""
        self.block_model_type, self.block_config = config.model_type, strip_block_config(config)

    @property
    def num_hidden_layers(self) -> int:
        """
        Number of layer calls at fixed depth, which is the number of key-value slots of a token:
        `num_prelude_layers + num_recurrent_layers * num_recurrences + num_coda_layers`. It is never stored.
        """
        return self.num_prelude_layers + self.num_recurrent_layers * self.num_recurrences + self.num_coda_layers

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
        check_token_ids(self)
        if self.block_model_type is not None:
            self._validate_family()
            return
        if self.block_config is not None:
            raise ValueError("block_config needs block_model_type, the family whose config it is.")
        if (
            self.num_attention_heads * self.head_dim != self.hidden_size
            and self.hidden_size % self.num_attention_heads
        ):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads="
                f"{self.num_attention_heads}. Choose a multiple, or give head_dim."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of num_key_value_heads="
                f"{self.num_key_value_heads}: every key head serves the same number of query heads."
            )
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size={self.hidden_size} must be even: sinusoidal positions come in pairs.")
        if self.position_embedding_type == "rope":
            check_rope(self.rope_parameters or {}, self.head_dim)

    def _validate_family(self):
        self._refuse_block_fields()
        for name, value in described_fields(self.make_block_config()).items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} contradicts block_config, from which {value!r} follows. Change "
                    "block_config."
                )

    def validate_rope(self):
        """The checks of the library, whose KeyError names neither the field nor what to do."""
        try:
            super().validate_rope()
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"rope_parameters={self.rope_parameters!r} cannot be used: {error.args[0]}. Add what is missing, or "
                "choose another rope_type."
            ) from None

    def validate_recurrence(self):
        """Checks of the fields that say how many recurrences run."""
        low, high = self.recurrence_min, self.recurrence_max
        if self.recurrence_lora_rank is not None and self.recurrence_lora_rank > self.hidden_size:
            raise ValueError(
                f"recurrence_lora_rank={self.recurrence_lora_rank} is above hidden_size={self.hidden_size}: low-rank "
                "updates would be larger than the weights. Choose a smaller rank."
            )
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
        if self.coda_norm and not self.num_coda_layers:
            raise ValueError("coda_norm=True needs coda layers, but num_coda_layers=0.")
        if self.recurrence_gradients == "separate":
            self._validate_separation()

    def _validate_separation(self):
        if self.state_init != "embedding":
            raise ValueError(
                f"recurrence_gradients='separate' with state_init={self.state_init!r}: the first recurrence would use "
                "the injection, which belongs to later ones. Choose state_init='embedding'."
            )
        own = (
            self.input_injection in ("gate", "concat"),
            self.state_norm not in ("none", "last"),
            self.recurrence_lora_rank,
        )
        if not any(own):
            raise ValueError(
                "recurrence_gradients='separate' needs weights that belong to later recurrences. Choose "
                "input_injection='gate' or 'concat', a state_norm, or a recurrence_lora_rank."
            )

    def validate_halting(self):
        """Checks of the fields that say when the loop stops."""
        if self.min_recurrences > self.max_recurrences:
            raise ValueError(
                f"min_recurrences={self.min_recurrences} is above max_recurrences={self.max_recurrences}."
            )
        if self.halting_criterion is not None and self.halting_criterion not in HALTING_CRITERIA:
            close = difflib.get_close_matches(self.halting_criterion, HALTING_CRITERIA, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(
                f"halting_criterion={self.halting_criterion!r} must be one of {', '.join(HALTING_CRITERIA)}.{hint}"
            )
        if self.halting_criterion == "exit_gate" and not self.exit_gate:
            raise ValueError("halting_criterion='exit_gate' needs a model with exit_gate=True.")


__all__ = ["RecurrentDepthConfig"]
