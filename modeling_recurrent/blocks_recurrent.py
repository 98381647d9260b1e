"""The decoder layers: norms, attention, MLP and block, of the GPT-2, Llama and Qwen families."""

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_recurrent import RecurrentDepthConfig
from .positions_recurrent import rotate


class RecurrentDepthRMSNorm(nn.Module):
    """Root-mean-square norm in float32, the weight applied in the input's dtype (as in Llama)."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states):
        values = hidden_states.float()
        values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * values.to(hidden_states.dtype)

    def extra_repr(self):
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


NORMS = {"layernorm": nn.LayerNorm, "rmsnorm": RecurrentDepthRMSNorm}


def repeat_kv(states, repeats):
    """`(batch, kv_heads, sequence, head_dim)` -> `(batch, kv_heads * repeats, sequence, head_dim)`."""
    return states if repeats == 1 else states.repeat_interleave(repeats, dim=1)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention with its weights, in plain operations."""
    key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    # At least float32; what masks a whole row in float64 would become infinite there.
    precise = torch.promote_types(query.dtype, torch.float32)
    weights = nn.functional.softmax(weights, dim=-1, dtype=precise).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


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
        query_width, key_width = (n * self.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_output_bias)

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, slots=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if position_embeddings is not None:
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)

        def attend(query, key, value, mask):
            return interface(
                self,
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
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


class RecurrentDepthMLP(nn.Module):
    def __init__(self, config: RecurrentDepthConfig):
        super().__init__()
        self.gate_proj = None
        if config.gated_mlp:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        # GPT-2's `gelu_new` is `gelu_pytorch_tanh` written out in seven operations.
        self.act_fn = ACT2FN["gelu_pytorch_tanh" if config.hidden_act == "gelu_new" else config.hidden_act]

    def forward(self, hidden_states):
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(hidden_states)))
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class RecurrentDepthBlock(GradientCheckpointingLayer):
    """A pre-norm decoder layer. `is_looped` layers attend within the sliding window and may start scaled down."""

    def __init__(self, config: RecurrentDepthConfig, layer_idx: int, is_looped: bool):
        super().__init__()
        norm = NORMS[config.norm_type]
        self.input_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = RecurrentDepthAttention(config, layer_idx, config.sliding_window if is_looped else None)
        self.post_attention_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        self.mlp = RecurrentDepthMLP(config)
        self.dropout = nn.Dropout(config.residual_dropout)
        if is_looped:
            self.self_attn.o_proj.init_scale = self.mlp.down_proj.init_scale = config.residual_init_scale

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, slots=None, **kwargs):
        attended, weights = self.self_attn(
            self.input_layernorm(hidden_states), attention_mask, position_embeddings, slots, **kwargs
        )
        hidden_states = hidden_states + self.dropout(attended)
        hidden_states = hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))
        return hidden_states, weights


__all__ = ["NORMS", "RecurrentDepthBlock", "RecurrentDepthRMSNorm"]
