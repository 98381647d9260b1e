"""
The published loops, restated in a few lines each from modules of the libraries, with the names of their checkpoints.

They take one text without padding per row and no cache. `tests/integration/test_published_loops.py` compares them with
the original code.
"""

import json

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu
from transformers.pytorch_utils import Conv1D


WIDTH, HEADS, VOCAB = 32, 4, 61


def rotated(x, base, adjacent):
    """
    Rotates pairs of the channels of `(batch, tokens, heads, head_dim)` by `position * base^(-2i / head_dim)`.

    A pair is two adjacent channels, or a channel of the first half and its counterpart in the second.
    """
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * base ** (-torch.arange(half, dtype=x.dtype) / half)
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]
    pairs = x.unflatten(-1, (half, 2)) if adjacent else x.unflatten(-1, (2, half)).transpose(-1, -2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turns)
    return turned.flatten(-2) if adjacent else turned.transpose(-1, -2).flatten(-2)


def attend(query, key, value, mask=None):
    """Causal attention of `(batch, tokens, heads, head_dim)`; key heads serve groups of query heads."""
    groups = query.shape[2] // key.shape[2]
    key, value = (x.repeat_interleave(groups, dim=2).transpose(1, 2) for x in (key, value))
    attended = scaled_dot_product_attention(query.transpose(1, 2), key, value, mask, is_causal=mask is None)
    return attended.transpose(1, 2).flatten(2)


class RavenLayer(nn.Module):
    """
    A layer of Huginn (`norms="residual"`), of Retrofit from Llama (`"pre"`) or of Retrofit from OLMo 2 (`"post"`).

    `norms="sandwich"` puts Huginn's second norms inside the residual connection: what it is not.
    """

    def __init__(self, norms, key_heads, base, adjacent, eps):
        super().__init__()
        self.norms, self.base, self.adjacent = norms, base, adjacent
        head_dim = WIDTH // HEADS
        self.sizes = [WIDTH, key_heads * head_dim, key_heads * head_dim]
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.Wqkv = nn.Linear(WIDTH, sum(self.sizes), bias=False)
        self.attn.proj = nn.Linear(WIDTH, WIDTH, bias=False)
        if norms in ("residual", "sandwich"):
            self.attn.qk_bias = nn.Parameter(torch.zeros(2, 1, HEADS, head_dim))
        if norms == "post":
            self.attn.q_norm = nn.RMSNorm(self.sizes[0], eps=eps)
            self.attn.k_norm = nn.RMSNorm(self.sizes[1], eps=eps)
        self.mlp.fc = nn.Linear(WIDTH, 2 * 48, bias=False)
        self.mlp.proj = nn.Linear(48, WIDTH, bias=False)
        for index in range(4 if norms in ("residual", "sandwich") else 2):
            setattr(self, f"norm_{index + 1}", nn.RMSNorm(WIDTH, eps=eps))

    def attention(self, x):
        query, key, value = self.attn.Wqkv(x).split(self.sizes, dim=-1)
        if self.norms == "post":
            query, key = self.attn.q_norm(query), self.attn.k_norm(key)
        query, key, value = (states.unflatten(-1, (-1, WIDTH // HEADS)) for states in (query, key, value))
        if hasattr(self.attn, "qk_bias"):
            query, key = query + self.attn.qk_bias[0], key + self.attn.qk_bias[1]
        query, key = (rotated(states, self.base, self.adjacent) for states in (query, key))
        return self.attn.proj(attend(query, key, value))

    def feed_forward(self, x):
        gate, up = self.mlp.fc(x).chunk(2, dim=-1)
        return self.mlp.proj(silu(gate) * up)

    def forward(self, x):
        if self.norms == "residual":
            x = self.norm_2(x + self.attention(self.norm_1(x)))
            return self.norm_4(x + self.feed_forward(self.norm_3(x)))
        if self.norms == "sandwich":
            x = x + self.norm_2(self.attention(self.norm_1(x)))
            return x + self.norm_4(self.feed_forward(self.norm_3(x)))
        if self.norms == "post":
            x = x + self.norm_1(self.attention(x))
            return x + self.norm_2(self.feed_forward(x))
        x = x + self.attention(self.norm_1(x))
        return x + self.feed_forward(self.norm_2(x))


class Raven(nn.Module):
    """
    Huginn and the Retrofit models: prelude, adapter over state and prelude, core, coda, last norm.

    Huginn applies the last norm before the coda, too.
    """

    def __init__(self, config):
        super().__init__()
        self.norms = config.get("norms", "residual")
        self.scale = config["init_values"]["embed_scale"]
        huginn = self.norms in ("residual", "sandwich")
        self.norm_before_coda = config.get("norm_before_coda", huginn)
        base = config["rope_base"] if huginn else config["rope_theta"]
        adjacent = config.get("adjacent", huginn)

        def layers(name):
            return nn.ModuleList(
                RavenLayer(self.norms, config["num_key_value_heads"], base, adjacent, config["norm_eps"])
                for _ in range(config[f"n_layers_in_{name}"])
            )

        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(VOCAB, WIDTH),
                "prelude": layers("prelude"),
                "adapter": nn.Linear(2 * WIDTH, WIDTH, bias=False),
                "core_block": layers("recurrent_block"),
                "coda": layers("coda"),
                "ln_f": nn.RMSNorm(WIDTH, eps=config["norm_eps"]),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        if config["tie_embeddings"]:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(self, ids, state, recurrences):
        parts = self.transformer
        inputs = parts.wte(ids) * self.scale
        for layer in parts.prelude:
            inputs = layer(inputs)
        for _ in range(recurrences):
            state = parts.adapter(torch.cat((state, inputs), dim=-1))
            for layer in parts.core_block:
                state = layer(state)
        hidden = parts.ln_f(state) if self.norm_before_coda else state
        for layer in parts.coda:
            hidden = layer(hidden)
        return self.lm_head(parts.ln_f(hidden))


class OuroLayer(nn.Module):
    """A layer of Ouro: a norm before and a norm after each sublayer, both inside the residual connection."""

    def __init__(self, config):
        super().__init__()
        self.base, self.key_heads = config["rope_theta"], config["num_key_value_heads"]
        key_width = self.key_heads * WIDTH // HEADS
        linear = {"q_proj": WIDTH, "k_proj": key_width, "v_proj": key_width, "o_proj": WIDTH}
        self.self_attn = nn.ModuleDict({name: nn.Linear(WIDTH, out, bias=False) for name, out in linear.items()})
        self.mlp = nn.ModuleDict({name: nn.Linear(WIDTH, 48, bias=False) for name in ("gate_proj", "up_proj")})
        self.mlp["down_proj"] = nn.Linear(48, WIDTH, bias=False)
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(self, name, nn.RMSNorm(WIDTH, eps=config["rms_norm_eps"]))
            setattr(self, f"{name}_2", nn.RMSNorm(WIDTH, eps=config["rms_norm_eps"]))

    def attention(self, x):
        parts = self.self_attn
        query, key, value = (
            parts[name](x).unflatten(-1, (-1, WIDTH // HEADS)) for name in ("q_proj", "k_proj", "v_proj")
        )
        query, key = (rotated(states, self.base, adjacent=False) for states in (query, key))
        return parts["o_proj"](attend(query, key, value))

    def forward(self, x):
        x = x + self.input_layernorm_2(self.attention(self.input_layernorm(x)))
        normed = self.post_attention_layernorm(x)
        fed = self.mlp["down_proj"](silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed))
        return x + self.post_attention_layernorm_2(fed)


class Ouro(nn.Module):
    """All layers again and again, the last norm after every recurrence, a gate on what it gives."""

    def __init__(self, config):
        super().__init__()
        self.norm_every_recurrence = config.get("norm_every_recurrence", True)
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(VOCAB, WIDTH),
                "layers": nn.ModuleList(OuroLayer(config) for _ in range(config["num_hidden_layers"])),
                "norm": nn.RMSNorm(WIDTH, eps=config["rms_norm_eps"]),
                "early_exit_gate": nn.Linear(WIDTH, 1),
            }
        )
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, ids, recurrences):
        """The logits after the last recurrence, and the exit probability at each, `(recurrences, *ids.shape)`."""
        hidden, exits = self.model["embed_tokens"](ids), []
        for recurrence in range(recurrences):
            for layer in self.model["layers"]:
                hidden = layer(hidden)
            if self.norm_every_recurrence or recurrence == recurrences - 1:
                hidden = self.model["norm"](hidden)
            exits.append(self.model["early_exit_gate"](hidden)[..., 0].sigmoid())
        return self.lm_head(hidden), torch.stack(exits)


def exit_counts(exits, threshold, most):
    """The first recurrence (from 1) at which the probability of having left reaches `threshold`, else `most`."""
    left = 1 - (1 - exits[:most]).cumprod(0)
    reached = left >= threshold
    return torch.where(reached.any(0), reached.int().argmax(0) + 1, most)


class StudyLayer(nn.Module):
    """A GPT-2 layer, whose linear layers store their weights transposed."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH, eps=1e-5), nn.LayerNorm(WIDTH, eps=1e-5)
        self.attn = nn.ModuleDict({"c_attn": Conv1D(3 * WIDTH, WIDTH), "c_proj": Conv1D(WIDTH, WIDTH)})
        self.mlp = nn.ModuleDict({"c_fc": Conv1D(4 * WIDTH, WIDTH), "c_proj": Conv1D(WIDTH, 4 * WIDTH)})

    def forward(self, x, mask):
        heads = (states.unflatten(-1, (HEADS, -1)) for states in self.attn["c_attn"](self.ln_1(x)).chunk(3, dim=-1))
        x = x + self.attn["c_proj"](attend(*heads, mask))
        return x + self.mlp["c_proj"](gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class Study(nn.Module):
    """The study's decoder; padding is on the right and is read out, too."""

    def __init__(self, positions="none", input_injection=False, causal=True):
        super().__init__()
        self.input_injection, self.causal = input_injection, causal
        self.blocks = nn.ModuleList(StudyLayer() for _ in range(2))
        self.token_embedding = nn.Embedding(VOCAB, WIDTH)
        if positions == "learned":
            self.position_embedding = nn.Embedding(12, WIDTH)
        if positions == "sinusoidal":
            channel = torch.arange(0, WIDTH, 2)
            angles = torch.arange(12)[:, None] / 10000 ** (channel / WIDTH)
            self.register_buffer("pe", torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1))
        self.ln_f = nn.LayerNorm(WIDTH, eps=1e-5)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.lm_head.weight = self.token_embedding.weight

    def forward(self, ids, real, recurrences):
        tokens = ids.shape[1]
        hidden = self.token_embedding(ids)
        if hasattr(self, "position_embedding"):
            hidden = hidden + self.position_embedding.weight[:tokens]
        if hasattr(self, "pe"):
            hidden = hidden + self.pe[:tokens]
        before = torch.ones(tokens, tokens, dtype=torch.bool)
        mask = (before.tril() if self.causal else before) & real.bool()[:, None, None, :]
        inputs = hidden
        for recurrence in range(recurrences):
            if self.input_injection and recurrence:
                hidden = hidden + inputs
            for layer in self.blocks:
                hidden = layer(hidden, mask)
        return self.lm_head(self.ln_f(hidden))


HUGINN = {
    "model_type": "huginn_raven",
    "n_embd": WIDTH,
    "n_heads": HEADS,
    "num_key_value_heads": HEADS,
    "n_layers_in_prelude": 2,
    "n_layers_in_recurrent_block": 2,
    "n_layers_in_coda": 1,
    "block_size": 64,
    "vocab_size": VOCAB,
    "intermediate_size": 48,
    "norm_eps": 1e-6,
    "rope_base": 50000,
    "qk_bias": True,
    "bias": False,
    "tie_embeddings": True,
    "mean_recurrence": 4,
    "mean_backprop_depth": 8,
    "sampling_scheme": "poisson-lognormal-filling",
    "state_init": "like-init",
    "injection_type": "linear",
    "test_time_noise": 0,
    "init_values": {"std": (2 / (5 * WIDTH)) ** 0.5, "embed_scale": WIDTH**0.5},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
RETROFIT_LLAMA = HUGINN | {
    "norms": "pre",
    "num_key_value_heads": 2,
    "norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "qk_bias": False,
    "tie_embeddings": False,
    "init_values": {"std": (2 / (5 * WIDTH)) ** 0.5, "embed_scale": 1.0},
    "max_position_embeddings": 64,
}
RETROFIT_OLMO = RETROFIT_LLAMA | {"norms": "post", "initial_state_mode": "random"}
OURO = {
    "model_type": "ouro",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "total_ut_steps": 4,
    "early_exit_threshold": 1.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "layer_types": ["full_attention"] * 3,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "float32",
}
# Keys that only the restatements read.
OWN_KEYS = ("norms", "adjacent", "norm_before_coda", "norm_every_recurrence")


def shaken(module, strength=0.1):
    """Random values also for norms and biases, so that a missing one changes the results."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * strength)
    return module.eval()


def save_config(folder, config):
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: value for name, value in config.items() if name not in OWN_KEYS}
    (folder / "config.json").write_text(json.dumps(stored), encoding="utf-8")


def stored_tensors(module):
    """What the original saves: tied weights once."""
    tensors = {name: value.contiguous() for name, value in module.state_dict().items()}
    if isinstance(module, Raven) and module.lm_head.weight is module.transformer.wte.weight:
        del tensors["lm_head.weight"]
    return tensors


def save_published(folder, config, module, shards=1, pickled=False):
    """A folder as the authors publish it: config and weights, in shards with their index or in one file."""
    save_config(folder, config)
    tensors = stored_tensors(module)
    end, save = ("bin", torch.save) if pickled else ("safetensors", save_file)
    stem = "pytorch_model" if pickled else "model"
    if shards == 1:
        save(tensors, folder / f"{stem}.{end}")
        return
    names, weight_map = sorted(tensors), {}
    for shard in range(shards):
        name = f"{stem}-{shard + 1:05d}-of-{shards:05d}.{end}"
        weight_map |= dict.fromkeys(names[shard::shards], name)
        save({key: tensors[key] for key in names[shard::shards]}, folder / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index), encoding="utf-8")


def save_study(path, module, compiled=False):
    """A checkpoint of the study, with an optimizer's state; `compiled`: saved from a compiled model."""
    weights = {f"_orig_mod.{name}" if compiled else name: value for name, value in module.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {"state": {}}, "loss": 0.5}, path)


def published(kind, seed=0, **changes):
    """The config of a kind of published loop, and a tiny model of it with random weights."""
    torch.manual_seed(seed)
    if kind.startswith("study"):
        # `config` is what the caller has to say, because the checkpoint does not.
        return {"num_attention_heads": HEADS, "input_injection": changes.get("input_injection", False)}, shaken(
            Study(**changes), 0.2
        )
    base = {"huginn": HUGINN, "retrofit_llama": RETROFIT_LLAMA, "retrofit_olmo": RETROFIT_OLMO, "ouro": OURO}[kind]
    config = base | changes
    module = shaken(Ouro(config) if kind == "ouro" else Raven(config))
    last = {"ouro": ("layernorm_2.weight",), "retrofit_olmo": (".norm_1.weight", ".norm_2.weight")}.get(kind, ())
    with torch.no_grad():
        # With sublayers as large as the state, rounding would grow with every recurrence.
        for name, parameter in module.named_parameters():
            if name.endswith(last):
                parameter.mul_(0.5)
    return config, module


def save_any(folder, kind, config, module):
    """Saves a model of `published`; returns what `convert_published` is called with besides the folder."""
    if kind.startswith("study"):
        save_study(folder / "checkpoint_epoch_4.pt", module)
        return config
    save_published(folder, config, module)
    return {}


def logits_of(kind, module, ids, recurrences, state=None):
    """Logits of a restated model for whole rows."""
    with torch.no_grad():
        if kind.startswith("study"):
            return module(ids, torch.ones_like(ids), recurrences)
        return module(ids, recurrences)[0] if kind == "ouro" else module(ids, state, recurrences)
