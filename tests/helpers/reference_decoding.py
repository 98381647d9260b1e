"""
Logits and counts of a text by brute force: one row, no cache, no batch, no padding, no token skipped.

At recurrence t token i attends to what token j computed at recurrence min(t, count of j). Every recurrence computes
every token; a token that has halted gets its old state, keys and values back. Only weights, norms and MLPs are the
model's.
"""

import torch
from unfused import add_update, norm_between, projections


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
    angles = _angles(config, len(row))
    inputs = _embed(model, row)
    for block in decoder.prelude_layers:
        inputs, _ = _layer(block, inputs, angles, None)
    state = inputs if config.state_init == "embedding" else torch.zeros_like(inputs)
    counts, open_ = counts.clone(), counts == 0
    halted = torch.zeros(len(row), dtype=torch.bool)
    shown = [None] * len(decoder.recurrent_layers)
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
        for depth, block in enumerate(decoder.recurrent_layers):
            x, shown[depth] = _layer(block, x, angles, config.sliding_window, shown[depth], halted)
        state = torch.where(halted[:, None], state, x)
        if open_.any():
            states.append(state)
            logits.append(model.lm_head(decoder.norm(state)))
            stops = halts(states, logits) | (recurrence == config.max_recurrences)
            if together:
                stops = stops[open_.nonzero().max()].expand(len(row))
            counts = torch.where(open_ & (counts == 0) & stops, recurrence, counts)
        halted = (counts > 0) & (counts <= recurrence)
        if halted.all():
            break
    if config.coda_norm:
        state = decoder.norm(state)
    for block in decoder.coda_layers:
        state, _ = _layer(block, state, angles, None)
    return model.lm_head(decoder.norm(state)), counts


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
