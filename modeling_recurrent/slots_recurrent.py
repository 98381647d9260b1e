"""
The key-value slots of a decoder as modules, in which inference engines and caches of the library see its loop.

An engine attaches its memory for keys and values to a module, or looks it up by the `layer_idx` of the module that
calls the attention function. A looped layer attends several times in a forward pass, so each time is a module here.
"""

from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_recurrent import VLLM, attention_of, eager_attention_of
from .vllm_recurrent import check_heads


# No engine has memory for the keys and values of so many layers, and modules take memory, too.
MOST_SLOTS = 10_000

# What engines pass to the attention function: the paged cache of continuous batching, and vLLM's attention layers.
ENGINE_ARGUMENTS = ("cache", "attention_instances")


class KeyValueSlot(nn.Module):
    """
    The attention of one layer in one recurrence. It has no weights.

    Args:
        config (`RecurrentDepthConfig`): The config of the model.
        layer_idx (`int`): The index of the slot, in the order in which the slots of a token are computed.
        attention (`torch.nn.Module`): The attention of the layer, ours or a family's. The slot copies its plain
            attributes (`is_causal`, `sliding_window`, `scaling`, `num_key_value_groups`, …).
        block (`PreTrainedConfig`, *optional*): The config of the family whose layers run.
    """

    def __init__(self, config, layer_idx: int, attention: nn.Module, block=None):
        super().__init__()
        for name, value in vars(attention).items():
            if not name.startswith("_") and isinstance(value, bool | int | float | str | None):
                setattr(self, name, value)
        self.config = config
        self.layer_idx = layer_idx
        self.block = block

    def eager_attention(self, *args, **kwargs):
        """Attention in plain operations, as the family of the layers defines it."""
        return eager_attention_of(self.block)(*args, **kwargs)

    def forward(self, query, key, value, attention_mask, interface=None, scaling=None, **kwargs):
        """
        Attends.

        Args:
            query, key, value (`torch.Tensor` of shape `(rows, heads, tokens, head_dim)`): Keys and values with those
                of earlier tokens, unless an engine keeps them.
            attention_mask: In the form that the attention function takes.
            interface (`Callable`, *optional*): The attention function; by default the one that the config selects.
            scaling (`float`, *optional*): Must be that of the attention of the layer.
            kwargs: For the attention function.
        """
        if scaling is not None and scaling != self.scaling:
            raise ValueError(f"scaling={scaling} of the attention is not that of its slot, {self.scaling}.")
        if interface is None:
            interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, self.eager_attention)
        if self.config._attn_implementation == VLLM:
            check_heads(self, query, key)
        # vLLM finds this call in the source, and reads the factor that it must use from the attribute.
        output, weights = interface(self, query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        if output.ndim == 2:
            # vLLM returns the tokens of all requests without an axis for rows and for heads.
            output = output.view(query.shape[0], query.shape[2], query.shape[1], -1)
        return output, weights


class KeyValueSlots(nn.ModuleList):
    """
    All slots of a token in the order in which they are computed: those of the prelude, of the looped layers in every
    recurrence, and of the coda. There are `config.num_hidden_layers`, as long as these are at most `MOST_SLOTS`.

    Args:
        config (`RecurrentDepthConfig`): The config of the model.
        layers (`Iterable` of `torch.nn.Module`): Its physical layers.
        block (`PreTrainedConfig`, *optional*): The config of the family whose layers run.
    """

    def __init__(self, config, layers, block=None):
        attentions = [attention_of(layer) for layer in layers]
        # One recurrence stands for all where there are more slots than an engine would ever have memory for.
        repeats = config.num_recurrences if config.num_hidden_layers <= MOST_SLOTS else 1
        super().__init__(
            KeyValueSlot(config, index, attention, block)
            for index, attention in enumerate(config.spread_over_slots(attentions, repeats))
        )
        self.num_recurrences = repeats
        self.num_looped = config.num_recurrent_layers

    def offset(self, stack: str, recurrence: int) -> int:
        """
        What to add to the index of a physical layer of `stack` to have that of its slot in a recurrence.

        Recurrences beyond those of the config share the slots of the last one. Engines do not run them.
        """
        if stack == "prelude":
            return 0
        last = self.num_recurrences
        return self.num_looped * ((last if stack == "coda" else min(recurrence, last)) - 1)


def runs_in_engine(config, kwargs: dict) -> bool:
    """
    Whether the call comes from an inference engine, which keeps keys and values itself.

    Args:
        config (`RecurrentDepthConfig`): `_attn_implementation` is read.
        kwargs (`dict`): The keyword arguments of the forward pass.

    Raises:
        `TypeError`: `cache` is the cache of a caller who keeps it.
    """
    if isinstance(kwargs.get("cache"), Cache):
        raise TypeError(
            f"cache is a {type(kwargs['cache']).__name__}, but is an argument of inference engines. Did you mean "
            "past_key_values?"
        )
    return config._attn_implementation == VLLM or any(kwargs.get(name) is not None for name in ENGINE_ARGUMENTS)


def check_engine(config, depth, past_key_values=None, cache_recurrences=None) -> None:
    """
    Checks a call of an inference engine, which keeps one slot for each recurrence of the config.

    Args:
        config (`RecurrentDepthConfig`): The config of the model.
        depth (`int` or `HaltingRule`): The depth of the call.
        past_key_values, cache_recurrences (*optional*): Those of the call.

    Raises:
        `ValueError`: The call has another depth, or a cache of its own.
    """
    if past_key_values is not None:
        raise ValueError("past_key_values in a call of an inference engine, which keeps keys and values itself.")
    if not isinstance(depth, int):
        raise ValueError(
            "An inference engine runs every token through all recurrences of the config, but this call has counts "
            f"per row or a halting criterion (halting_criterion={config.halting_criterion!r} in the config). Set "
            "halting_criterion=None, or use generate."
        )
    if config.num_hidden_layers > MOST_SLOTS:
        raise ValueError(
            f"num_recurrences={depth} in a call of an inference engine gives {config.num_hidden_layers} key-value "
            f"slots for each token, above the limit of {MOST_SLOTS}. Set a lower num_recurrences in the config."
        )
    if depth != config.num_recurrences:
        raise ValueError(
            f"num_recurrences={depth} in a call of an inference engine, which keeps one slot for each recurrence of "
            f"the config, and the config has num_recurrences={config.num_recurrences}. Set the depth in the config."
        )
    if (cache_recurrences or config.cache_recurrences) != "all":
        raise ValueError(
            "cache_recurrences='last' is an approximation that an inference engine does not make: it keeps all "
            "recurrences. Set cache_recurrences='all'."
        )


__all__ = ["KeyValueSlot", "KeyValueSlots", "check_engine", "runs_in_engine"]
