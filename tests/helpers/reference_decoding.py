"""
Logits and counts of a text by brute force: one row, no cache, no batch, no padding, no token skipped.

At recurrence t token i attends to what token j computed at recurrence min(t, count of j). Every recurrence computes
every token; a token that has halted gets its old state, keys and values back. Only weights, norms and MLPs are the
model's.
"""

import inspect

import torch
from unfused import add_update, norm_between, projections

from memreason_hf.models import unroll_decoder


def _angles(config, length):
    if config.position_embedding_type != "rope":
        return None
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.double) / config.head_dim
    angles = torch.arange(length)[:, None] * config.rope_parameters["rope_theta"] ** -steps
    return angles.cos()[:, None], angles.sin()[:, None]


def _turn(x, angles):
    if angles is None:
        return x
    cos, sin = (values.to(x.dtype) for values in angles)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _embed(model, row):
    config = model.config
    inputs = model.model.embed_tokens.weight[row] * config.embedding_scale
    places = torch.arange(len(row))
    if config.position_embedding_type == "learned":
        return inputs + model.model.embed_positions.weight[places]
    if config.position_embedding_type == "sinusoidal":
        steps = torch.arange(0, config.hidden_size, 2) / config.hidden_size
        angles = places[:, None] / 10000**steps
        return inputs + torch.cat((angles.sin(), angles.cos()), dim=-1).to(inputs.dtype)
    return inputs


def _layer(block, x, angles, window, old=None, halted=None):
    """One block over all tokens; `halted` tokens keep the `old` keys and values. Also returns keys and values."""
    attention, normed, length = block.self_attn, block.input_layernorm(x), len(x)
    query, key, value = (
        torch.nn.functional.linear(normed, weight, bias).view(length, -1, attention.head_dim)
        for weight, bias in projections(attention)
    )
    query, key = _turn(query, angles), _turn(key, angles)
    if old is not None:
        key, value = (torch.where(halted[:, None, None], before, now) for before, now in zip(old, (key, value)))
    repeats = query.shape[1] // key.shape[1]
    scores = torch.einsum("ihd,jhd->hij", query, key.repeat_interleave(repeats, 1)) * attention.head_dim**-0.5
    distance = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (distance < 0) | (distance >= (window or length + 1))
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    attended = torch.einsum("hij,jhd->ihd", weights, value.repeat_interleave(repeats, 1)).flatten(1)
    config = attention.config
    x = add_update(config, block.attention_output_layernorm, x, attention.o_proj(attended))
    update = block.mlp(block.post_attention_layernorm(x))
    return add_update(config, block.mlp_output_layernorm, x, update), (key, value)


class OwnStack:
    """Our own blocks."""

    def __init__(self, model, length):
        self.model, self.config, self.decoder = model, model.config, model.model
        self.angles = _angles(self.config, length)

    def embed(self, row):
        return _embed(self.model, row)

    def layer(self, index, x, old=None, halted=None):
        window = self.config.sliding_window if self.decoder.layers[index] in self.decoder.recurrent_layers else None
        return _layer(self.decoder.layers[index], x, self.angles, window, old, halted)

    def logits(self, x):
        return self.model.lm_head(self.decoder.norm(x))


class _KeptKeys:
    """In place of a cache of the library: gives halted tokens their old keys and values."""

    def __init__(self, old, halted):
        self.old, self.halted, self.pair = old, halted, None

    def update(self, key, value, *args, **kwargs):
        self.pair = key, value
        if self.old is not None:
            halted = self.halted[None, None, :, None]
            self.pair = tuple(torch.where(halted, before, now) for before, now in zip(self.old, self.pair))
        return self.pair


class FamilyStack:
    """The layers of a plain decoder of the library, with its own attention in plain operations."""

    def __init__(self, model, length):
        self.config = model.config
        plain = unroll_decoder(model, 1)
        plain.set_attn_implementation("eager")
        self.plain, self.decoder = plain, plain.base_model
        self.layers = self.decoder.h if hasattr(self.decoder, "h") else self.decoder.layers
        self.dtype = plain.dtype
        self.length = length

    def embed(self, row):
        if hasattr(self.decoder, "wte"):
            return self.decoder.wte(row) + self.decoder.wpe.weight[: len(row)]
        return self.decoder.embed_tokens(row)

    def _kind(self, index):
        kinds = getattr(self.plain.config, "layer_types", None)
        return None if kinds is None else kinds[index]

    def _angles(self, index):
        rotary, places = getattr(self.decoder, "rotary_emb", None), torch.arange(self.length)[None]
        if rotary is None:
            return None
        kinds = (self._kind(index),) if "layer_type" in inspect.signature(rotary.forward).parameters else ()
        return rotary(torch.zeros(1, self.length, 1, dtype=self.dtype), places, *kinds)

    def _mask(self, index):
        window = getattr(self.plain.config, "sliding_window", None)
        if self._kind(index) == "full_attention":
            window = None
        distance = torch.arange(self.length)[:, None] - torch.arange(self.length)
        hidden = (distance < 0) | (distance >= (window or self.length + 1))
        return torch.zeros(1, 1, self.length, self.length, dtype=self.dtype).masked_fill(
            hidden, torch.finfo(self.dtype).min
        )

    def layer(self, index, x, old=None, halted=None):
        kept = _KeptKeys(old, halted)
        x = self.layers[index](
            x[None],
            attention_mask=self._mask(index),
            position_embeddings=self._angles(index),
            past_key_values=kept,
        )
        return x[0], kept.pair

    def logits(self, x):
        norm = self.decoder.ln_f if hasattr(self.decoder, "ln_f") else self.decoder.norm
        logits = self.plain.lm_head(norm(x))
        bound = getattr(self.plain.config, "final_logit_softcapping", None)
        return logits if bound is None else bound * torch.tanh(logits / bound)


def reference(model, row, counts, halts=None, together=False):
    """
    Args:
        row (`(tokens,)`), counts (`(tokens,)`): A text, and the recurrences of each token; 0: `halts` decides.
        halts (callable): `(states, logits)`, two lists with `(tokens, …)` of every recurrence so far, to what of
            `(tokens,)` may stop. `logits` are those without a coda.
        together (`bool`): The tokens that `halts` decides stop with the last of them.

    Returns:
        Logits `(tokens, vocab)` and counts `(tokens,)`.
    """
    config, decoder = model.config, model.model
    stack = (OwnStack if config.block_model_type is None else FamilyStack)(model, len(row))
    first, last = config.num_prelude_layers, config.num_prelude_layers + config.num_recurrent_layers
    inputs = stack.embed(row)
    for index in range(first):
        inputs, _ = stack.layer(index, inputs)
    state = inputs if config.state_init == "embedding" else torch.zeros_like(inputs)
    counts, open_ = counts.clone(), counts == 0
    halted = torch.zeros(len(row), dtype=torch.bool)
    shown = dict.fromkeys(range(first, last))
    states, logits = [], []
    for recurrence in range(1, config.max_recurrences + 1):
        x = state
        if recurrence > 1 and norm_between(decoder) is not None:
            x = norm_between(decoder)(x)
        if recurrence > 1 or config.state_init != "embedding":
            if config.input_injection == "add":
                x = x + inputs
            elif config.input_injection == "concat":
                x = torch.cat((x, inputs), dim=-1) @ decoder.injection.weight.T
            elif config.input_injection == "gate":
                x = inputs + decoder.injection.weight * (x - inputs)
        for index in range(first, last):
            x, shown[index] = stack.layer(index, x, shown[index], halted)
        state = torch.where(halted[:, None], state, x)
        if open_.any():
            states.append(state)
            logits.append(stack.logits(state))
            stops = halts(states, logits) | (recurrence == config.max_recurrences)
            if together:
                stops = stops[open_.nonzero().max()].expand(len(row))
            counts = torch.where(open_ & (counts == 0) & stops, recurrence, counts)
        halted = (counts > 0) & (counts <= recurrence)
        if halted.all():
            break
    if config.coda_norm:
        state = model.model.norm(state)
    for index in range(last, config.num_physical_layers):
        state, _ = stack.layer(index, state)
    return stack.logits(state), counts


def difference_below(threshold):
    """`state_difference`, for `reference`."""

    def halts(states, _):
        if len(states) < 2:
            return torch.zeros(len(states[-1]), dtype=torch.bool)
        return (states[-1] - states[-2]).norm(dim=-1) / states[-1].norm(dim=-1) < threshold

    return halts


def left_by_gate(model, threshold):
    """`exit_gate`, for `reference`."""

    def halts(states, _):
        stays = [1 - model.model.exit_gate(model.model.norm(state)).sigmoid()[:, 0] for state in states]
        return 1 - torch.stack(stays).prod(0) >= threshold

    return halts


def divergence_below(threshold):
    """`kl`, for `reference`."""

    def halts(_, logits):
        if len(logits) < 2:
            return torch.zeros(len(logits[-1]), dtype=torch.bool)
        now, before = (values.log_softmax(-1) for values in (logits[-1], logits[-2]))
        return (now.exp() * (now - before)).sum(-1) < threshold

    return halts
