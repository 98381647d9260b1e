"""The decoder layers: norms, attention, MLP and block, of the GPT-2, Llama and Qwen families."""

from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_recurrent import VLLM
from .configuration_recurrent import RecurrentDepthConfig
from .parallel_recurrent import own_heads
from .positions_recurrent import rotate
from .slots_recurrent import KeyValueSlot


NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}


class RecurrentDepthAttention(nn.Module):
    def __init__(self, config: RecurrentDepthConfig, layer_idx: int, sliding_window: int | None):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.sliding_window = sliding_window
        # One projection for queries, keys and values: decoding is bound by reading weights, and one large matrix is
        # read faster than three.
        self.heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.widths = tuple(count * self.head_dim for count in self.heads)
        self.width = sum(self.widths)
        self.qkv_proj = nn.Linear(config.hidden_size, self.width, bias=config.attention_bias)
        self.o_proj = nn.Linear(self.widths[0], config.hidden_size, bias=config.attention_output_bias)

    def forward(self, hidden_states, attention_mask, position_embeddings, slots, slot, **kwargs):
        shape = hidden_states.shape[:-1]
        states, heads = self.qkv_proj(hidden_states), self.heads
        if states.shape[-1] != self.width:
            # Tensor parallelism: this process computes its part of the heads.
            states = own_heads(states, self.qkv_proj, self.widths)
            heads = tuple(count * states.shape[-1] // self.width for count in heads)
        states = states.view(*shape, -1, self.head_dim).transpose(1, 2)
        query_heads, key_heads, _ = heads
        if position_embeddings is None:
            query, key, value = states.split_with_sizes(heads, dim=1)
        else:
            turning, value = states.split_with_sizes((query_heads + key_heads, key_heads), dim=1)
            query, key = rotate(turning, *position_embeddings).split_with_sizes((query_heads, key_heads), dim=1)

        def attend(query, key, value, mask):
            return slot(
                query,
                key,
                value,
                mask,
                dropout=self.config.attention_dropout if self.training else 0.0,
                scaling=self.scaling,
                sliding_window=self.sliding_window,
                **kwargs,
            )

        if slots is None:
            output, weights = attend(query, key, value, attention_mask)
        else:
            output, weights = slots.attend(self.layer_idx, query, key, value, attention_mask, attend)
        return self.o_proj(output.reshape(*shape, -1)), weights


class RecurrentDepthSplitAttention(RecurrentDepthAttention):
    """
    The attention for vLLM, which recognises a fused projection by its split in three, and then splits the heads over
    processes. Elsewhere queries and keys are rotated together, which takes less time.
    """

    def forward(self, hidden_states, attention_mask, position_embeddings, slots, slot, **kwargs):
        shape = hidden_states.shape[:-1]
        query, key, value = self.qkv_proj(hidden_states).split((self.widths[0], self.widths[1], self.widths[2]), -1)
        query, key, value = (
            states.reshape(*shape, -1, self.head_dim).transpose(1, 2) for states in (query, key, value)
        )
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        output, weights = slot(query, key, value, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(output.reshape(*shape, -1)), weights


class RecurrentDepthMLP(nn.Module):
    def __init__(self, config: RecurrentDepthConfig):
        super().__init__()
        self.gated = config.gated_mlp
        if self.gated:
            self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        else:
            self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        # GPT-2's `gelu_new` is `gelu_pytorch_tanh` written out in seven operations.
        self.act_fn = ACT2FN["gelu_pytorch_tanh" if config.hidden_act == "gelu_new" else config.hidden_act]

    def forward(self, hidden_states):
        if not self.gated:
            return self.down_proj(self.act_fn(self.up_proj(hidden_states)))
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


class RecurrentDepthBlock(GradientCheckpointingLayer):
    """
    A decoder layer of the GPT-2, Llama or Qwen style, with a norm before each sublayer.

    `config.block_norm` adds a second norm for each sublayer: on its output (`"sandwich"`), or on the sum of its output
    and its input (`"residual"`).

    Args:
        config (`RecurrentDepthConfig`): The config of the model.
        layer_idx (`int`): The index of the layer among all layers with weights.
        is_looped (`bool`): Whether the layer is in the loop, and so uses `sliding_window` and `residual_init_scale`.
    """

    def __init__(self, config: RecurrentDepthConfig, layer_idx: int, is_looped: bool):
        super().__init__()
        norm = NORMS[config.norm_type]
        self.input_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        attention = RecurrentDepthSplitAttention if config._attn_implementation == VLLM else RecurrentDepthAttention
        self.self_attn = attention(config, layer_idx, config.sliding_window if is_looped else None)
        self.post_attention_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        self.mlp = RecurrentDepthMLP(config)
        self.attention_output_layernorm = self.mlp_output_layernorm = None
        if config.block_norm != "pre":
            self.attention_output_layernorm = norm(config.hidden_size, eps=config.norm_eps)
            self.mlp_output_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        self.norms_sums = config.block_norm == "residual"
        self.dropout = nn.Dropout(config.residual_dropout)
        if is_looped:
            self.self_attn.o_proj.init_scale = self.mlp.down_proj.init_scale = config.residual_init_scale

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, slots=None, slot=None, **kwargs):
        if slot is None:
            # A block that is called by itself.
            slot = KeyValueSlot(self.self_attn.config, self.self_attn.layer_idx, self.self_attn)
        attended, weights = self.self_attn(
            self.input_layernorm(hidden_states), attention_mask, position_embeddings, slots, slot, **kwargs
        )
        hidden_states = self._add(hidden_states, attended, self.attention_output_layernorm)
        update = self.mlp(self.post_attention_layernorm(hidden_states))
        return self._add(hidden_states, update, self.mlp_output_layernorm), weights

    def _add(self, hidden_states, update, norm):
        if norm is not None and not self.norms_sums:
            update = norm(update)
        hidden_states = hidden_states + (self.dropout(update) if self.training else update)
        return norm(hidden_states) if self.norms_sums else hidden_states


def run_own_layer(layer, hidden_states, mask, angles, slots, slot, **kwargs):
    """Calls one of our blocks; returns the new hidden states and the attention weights."""
    return layer(hidden_states, mask, angles, slots, slot, **kwargs)


__all__ = ["NORMS", "RecurrentDepthBlock", "run_own_layer"]
