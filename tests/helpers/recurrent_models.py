"""Tiny models and an independent reference for the tests of modeling_recurrent."""

from itertools import pairwise

import torch
from family_models import tiny_block_config
from unfused import add_update, norm_between, projections

from modeling_recurrent import RecurrentDepthConfig, RecurrentDepthForCausalLM
from modeling_recurrent.families_recurrent import strip_block_config


VOCAB = 61
# Models that decode in every way: positions, injections, norms, windows, prelude and coda.
DECODING_GRID = [
    ("gpt2", {"position_embedding_type": "learned", "input_injection": "add", "state_norm": "layernorm"}),
    ("gpt2", {"position_embedding_type": "none", "sliding_window": 3, "input_injection": "concat"}),
    ("gpt2", {"position_embedding_type": "sinusoidal", "num_prelude_layers": 1}),
    ("llama", {"num_key_value_heads": 2, "input_injection": "add", "state_norm": "rmsnorm"}),
    ("llama", {"num_prelude_layers": 1, "num_coda_layers": 1, "sliding_window": 4, "input_injection": "add"}),
    ("llama", {"num_coda_layers": 1, "state_init": "zeros", "input_injection": "concat", "state_norm": "rmsnorm"}),
    ("family:gemma3_text", {"num_prelude_layers": 1, "num_coda_layers": 1, "input_injection": "gate"}),
    ("family:smollm3", {"num_prelude_layers": 1, "input_injection": "gate", "recurrence_lora_rank": 2}),
    ("family:gpt2", {"num_coda_layers": 1, "input_injection": "add", "state_norm": "layernorm"}),
    # Ouro, and Huginn without its noise.
    ("llama", {"block_norm": "sandwich", "state_norm": "last", "exit_gate": True}),
    (
        "llama",
        {
            "block_norm": "residual",
            "num_prelude_layers": 1,
            "num_coda_layers": 1,
            "coda_norm": True,
            "input_injection": "concat",
            "state_init": "zeros",
            "embedding_scale": 3.0,
        },
    ),
]


def tiny_config(style="gpt2", **kwargs):
    """A config of a few thousand parameters; weights large enough that layers matter."""
    values = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_recurrent_layers": 2,
        "num_recurrences": 3,
        "max_recurrences": 12,
        "max_position_embeddings": 64,
        "initializer_range": 0.12,
        "pad_token_id": 0,
        **kwargs,
    }
    if style.startswith("family:"):
        return _tiny_family_config(style.removeprefix("family:"), values)
    return (RecurrentDepthConfig.gpt2_style if style == "gpt2" else RecurrentDepthConfig.llama_style)(**values)


def _tiny_family_config(model_type, values):
    """The layers of a family with the sizes of our own tiny models."""
    layers = sum(values.get(f"num_{stack}_layers", 0) for stack in ("prelude", "recurrent", "coda"))
    in_block = ("hidden_size", "intermediate_size", "num_attention_heads", "max_position_embeddings")
    sizes = {name: values.pop(name) for name in (*in_block, "initializer_range")}
    block = tiny_block_config(model_type, layers, **sizes)
    values.setdefault("tie_word_embeddings", block.tie_word_embeddings)
    return RecurrentDepthConfig(block_model_type=model_type, block_config=strip_block_config(block), **values)


def tiny_model(style="gpt2", seed=None, **kwargs):
    """
    A tiny model in eval mode, also with random biases, norms, gates and low-rank updates: a missing one changes
    the results. `style` is "gpt2" or "llama" for our own blocks, or "family:" with the name of a family.
    """
    if seed is not None:
        torch.manual_seed(seed)
    model = RecurrentDepthForCausalLM(tiny_config(style, **kwargs)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or any(part in name for part in ("norm", "injection", "recurrence_lora")):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def lively_model(style, extra, **kwargs):
    """Double precision and large weights: counts differ from token to token, rounding decides nothing."""
    return tiny_model(style, initializer_range=0.25, max_recurrences=9, **extra, **kwargs).double()


def grid_ids(grid):
    """A name for each (style, fields) of a grid."""
    return ["-".join([style, *(f"{name}={value}" for name, value in extra.items())]) for style, extra in grid]


def same_decoding(left, right):
    """Whether two outputs of `generate` hold the same texts and depths."""
    return all(
        torch.equal(getattr(left, name), getattr(right, name))
        for name in ("sequences", "num_recurrences", "prompt_recurrences")
    )


def random_ids(*shape):
    """Random token ids without the padding id."""
    return torch.randint(1, VOCAB, shape)


def pad(rows, side):
    """Rows of different lengths -> (input_ids, attention_mask), padded on `side`."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def relative_error(actual, expected):
    """Largest difference, relative to the largest expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def depth_calls(model):
    """Ways to ask for depth that this model supports, with thresholds at which counts vary."""
    ids = random_ids(24, 8)
    scores = {"state_difference": [], "kl": []}
    with torch.no_grad():
        runs = [model(ids, num_recurrences=t, output_hidden_states=True) for t in range(1, 6)]
    for before, after in pairwise(runs):
        old, new = before.hidden_states[-1], after.hidden_states[-1]
        scores["state_difference"].append(((new - old).norm(dim=-1) / new.norm(dim=-1)).flatten())
        p, q = after.logits.log_softmax(-1), before.logits.log_softmax(-1)
        scores["kl"].append((p.exp() * (p - q)).sum(-1).flatten())
    thresholds = {name: torch.cat(values).quantile(0.3).item() for name, values in scores.items()}
    calls = {
        "fixed": {"num_recurrences": 4},
        "rows": {"num_recurrences": torch.tensor([3, 1, 6, 2])},
        "token-state": {
            "halting_criterion": "state_difference",
            "state_difference_threshold": thresholds["state_difference"],
        },
        "sequence-kl": {
            "halting_criterion": "kl",
            "kl_threshold": thresholds["kl"],
            "halting_granularity": "sequence",
        },
    }
    if model.config.exit_gate:
        left = torch.ones(())
        for run in runs[:3]:
            left = left * (1 - model.model.exit_gate(model.model.norm(run.hidden_states[-1])).sigmoid())
        threshold = (1 - left).quantile(0.5).item()
        calls["token-gate"] = {"halting_criterion": "exit_gate", "exit_gate_threshold": threshold}
    if not model.config.num_coda_layers:
        calls["token-kl"] = {"halting_criterion": "kl", "kl_threshold": thresholds["kl"], "min_recurrences": 2}
    return calls


def _project(attention, which, hidden):
    weight, bias = projections(attention)[which]
    return torch.nn.functional.linear(hidden, weight, bias).view(-1, attention.head_dim)


def _attend(block, hidden, key_of, value_of, visible, angles):
    """Attention of one token: a loop over heads, softmax over the visible positions, no library call."""
    attention = block.self_attn
    head_dim, groups = attention.head_dim, attention.num_key_value_groups
    query = _project(attention, 0, hidden)
    outputs = []
    for head in range(query.shape[0]):
        q = _rotate(query[head], angles)
        scores = torch.stack([q @ key_of[j][head // groups] for j in visible]) / head_dim**0.5
        weights = scores.softmax(0)
        outputs.append(sum(w * value_of[j][head // groups] for w, j in zip(weights, visible)))
    return attention.o_proj(torch.cat(outputs))


def _rotate(vector, angles):
    if angles is None:
        return vector
    cos, sin = angles
    half = vector.shape[-1] // 2
    first, second = vector[..., :half], vector[..., half:]
    return torch.cat((first * cos[:half] - second * sin[:half], second * cos[:half] + first * sin[:half]), -1)


def reference_logits(model, row, counts):
    """
    Logits of one unpadded row, token by token and recurrence by recurrence, with nothing shared with the model's loop.

    `counts[i]` is the count of token i: at recurrence t it attends to what token j computed at min(t, counts[j]).
    Every layer call is a Python loop over tokens and heads; only the weights and the norms are the model's.
    """
    config, decoder = model.config, model.model
    length = len(row)
    inputs = list(decoder.embed_tokens(row) * config.embedding_scale)
    if config.position_embedding_type == "learned":
        inputs = [x + decoder.embed_positions.weight[i] for i, x in enumerate(inputs)]
    if config.position_embedding_type == "sinusoidal":
        steps = torch.arange(0, config.hidden_size, 2).float()
        for i in range(length):
            angle = i / 10000 ** (steps / config.hidden_size)
            inputs[i] = inputs[i] + torch.cat((angle.sin(), angle.cos()))
    angles = [None] * length
    if config.position_embedding_type == "rope":
        frequencies = 10000.0 ** -(torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        angles = [(torch.cos(i * frequencies), torch.sin(i * frequencies)) for i in range(length)]

    def keys_values(block, hidden, i):
        attention, normed = block.self_attn, block.input_layernorm(hidden)
        key = _project(attention, 1, normed)
        key = torch.stack([_rotate(k, angles[i]) for k in key])
        return key, _project(attention, 2, normed)

    def layer(block, hidden, keys, values, i, window):
        visible = [j for j in range(i + 1) if window is None or i - j < window]
        attended = _attend(block, block.input_layernorm(hidden), keys, values, visible, angles[i])
        hidden = add_update(config, block.attention_output_layernorm, hidden, attended)
        update = block.mlp(block.post_attention_layernorm(hidden))
        return add_update(config, block.mlp_output_layernorm, hidden, update)

    def plain(blocks, states):
        for block in blocks:
            pairs = [keys_values(block, x, i) for i, x in enumerate(states)]
            keys, values = [p[0] for p in pairs], [p[1] for p in pairs]
            states = [layer(block, x, keys, values, i, None) for i, x in enumerate(states)]
        return states

    inputs = plain(decoder.prelude_layers, inputs)
    states = list(inputs) if config.state_init == "embedding" else [torch.zeros_like(x) for x in inputs]
    kept = {}
    for recurrence in range(1, max(counts) + 1):
        current = []
        for x, e in zip(states, inputs):
            first = recurrence == 1
            if not first and norm_between(decoder) is not None:
                x = norm_between(decoder)(x)
            if config.input_injection != "none" and not (first and config.state_init == "embedding"):
                x = x + e if decoder.injection is None else decoder.injection.weight @ torch.cat((x, e))
            current.append(x)
        for depth, block in enumerate(decoder.recurrent_layers):
            for i, x in enumerate(current):
                if recurrence <= counts[i]:
                    kept[depth, i] = keys_values(block, x, i)
            keys, values = [kept[depth, i][0] for i in range(length)], [kept[depth, i][1] for i in range(length)]
            current = [layer(block, x, keys, values, i, config.sliding_window) for i, x in enumerate(current)]
        states = [new if recurrence <= count else old for new, old, count in zip(current, states, counts)]
    if config.coda_norm:
        states = [decoder.norm(x) for x in states]
    states = plain(decoder.coda_layers, states)
    return torch.stack([model.lm_head(decoder.norm(x)) for x in states])
